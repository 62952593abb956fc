"""Kernels that nobody here wrote, from pip, unmodified, on the CPU backend.

``names`` lists every public op of the packages, ``fla_*`` and ``liger`` say how to call each one
and what it must give, ``row`` runs one op at one length and dtype, ``table`` runs all of them.
"""
