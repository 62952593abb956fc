"""The model zoo: kernels and models written in tiles.

It registers with tkpy through the entry-point group ``tkpy.zoo``, as any other package may. The
registered module has ``kernels()`` (name -> kernel) and may have ``demo(console, text, seconds)``.
"""

from zoo import kernels as kernels
