"""The verbs of the language, one module a family; ``tkpy`` exports them all."""

from types import ModuleType as _Module

from tkpy.vocabulary.complex_tiles import *  # noqa: F403
from tkpy.vocabulary.create import *  # noqa: F403
from tkpy.vocabulary.index import *  # noqa: F403
from tkpy.vocabulary.maps import *  # noqa: F403
from tkpy.vocabulary.masks import *  # noqa: F403
from tkpy.vocabulary.memory import *  # noqa: F403
from tkpy.vocabulary.mma import *  # noqa: F403
from tkpy.vocabulary.numbers import *  # noqa: F403
from tkpy.vocabulary.order import *  # noqa: F403
from tkpy.vocabulary.random import *  # noqa: F403
from tkpy.vocabulary.reduce import *  # noqa: F403
from tkpy.vocabulary.structure import *  # noqa: F403
from tkpy.vocabulary.template import *  # noqa: F403
from tkpy.vocabulary.verb import VERBS as VERBS

# Verbs alone, not the modules that hold them: ``tkpy.template`` is a package of its own.
__all__ = [n for n, x in globals().items() if not (n.startswith("_") or isinstance(x, _Module))]
