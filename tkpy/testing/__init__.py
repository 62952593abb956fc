"""Property tests of kernels, derived from their signatures: ``tkpy.testing.check``."""

try:
    import hypothesis as _hypothesis  # noqa: F401
except ImportError as e:  # pragma: no cover
    raise ImportError(
        "tkpy.testing needs hypothesis, which is an optional extra\n  fix: pip install 'tkpy[test]'"
    ) from e

from tkpy.testing.check import CheckResult, check
from tkpy.testing.data import KINDS, LAYOUTS, laid_out, tensor
from tkpy.testing.model import Model, compare, conditioning
from tkpy.testing.run import poisoned

__all__ = [
    "KINDS",
    "LAYOUTS",
    "CheckResult",
    "Model",
    "check",
    "compare",
    "conditioning",
    "laid_out",
    "poisoned",
    "tensor",
]
