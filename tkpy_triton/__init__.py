"""What Triton finds through the entry-point group ``triton.backends``: the CPU backend.

Triton imports ``compiler`` and ``driver`` from here inside ``import triton``, for everybody and
without a try. So this package has a name of its own that no folder of a user's is likely to hide
(``codegen`` is a common name), imports nothing but the backend's two light modules, and where even
those cannot be imported it offers a backend that is never active.
"""
