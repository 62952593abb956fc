"""The verbs of the language, one module a family; ``tkpy`` exports them all."""

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
