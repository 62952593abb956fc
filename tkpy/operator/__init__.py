"""Kernels as PyTorch operators.

Every kernel is one, ``tkpy::<module>_<name>``, so that autograd, ``torch.compile``, ``torch.func``
and whatever else looks at operators see it as they see PyTorch's own. It is registered when
something of that kind first asks for it; a plain call never does and takes the short way of
``tkpy.replay``.
"""

from tkpy.operator.call import Operator
from tkpy.operator.formula import Formula

__all__ = ["Formula", "Operator"]
