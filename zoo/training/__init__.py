"""What every system of the zoo shares: configuration, the trainer, checkpoints, commands.

``docs/training.md`` tells how to add a system and how to train one.
"""

from zoo.training.config import ConfigError, Preset, Train, from_json, override, to_json
from zoo.training.files import LoadError
from zoo.training.pretrained import Pretrained
from zoo.training.system import Data, Request, Row, System, Unsupported

__all__ = [
    "ConfigError",
    "Data",
    "LoadError",
    "Preset",
    "Pretrained",
    "Request",
    "Row",
    "System",
    "Train",
    "Unsupported",
    "from_json",
    "override",
    "to_json",
]
