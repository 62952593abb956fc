"""What a run is made from: frozen dataclasses, strictly to JSON and back, and from ``--set``.

A preset holds three of them: the model's sizes, the data, and how it is trained. The first two are
classes of the system (``zoo.training.system``), the third is ``Train``. A field is an int, float,
bool, str, None, a Literal, a tuple, a dict with names as keys, another such dataclass, or a union
of these; nothing is converted silently, and a name that is no field is told with the nearest ones.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tkpy import TkError


class ConfigError(TkError, ValueError):
    """A configuration that cannot be: an unknown name, a value of another type or out of range."""


@dataclass(frozen=True)
class Train:
    """How a model is trained. AdamW; ``batch`` items a step whatever the number of processes.

    steps: optimizer steps. batch: items a step, over all processes and accumulation.
    accumulate: how many pieces a process computes its share of a batch in.
    lr: the peak; it rises linearly over ``warmup`` steps and falls along ``schedule`` to ``floor``
        times the peak when the last step is done.
    decay_all: whether weight decay applies to vectors (biases, gains) too.
    clip: largest norm of the whole gradient; None does not clip.
    autocast: the type of torch.autocast, None for none. Parameters and the optimizer are fp32.
    seed: of the weights, the order of the data, and what is random during training.
    log_every, evaluate_every, checkpoint_every: in steps; at 0 only at the end.
    checkpoint_seconds: also a checkpoint whenever so much time has passed; 0 is never.
    parallel: what joins several processes, torch's DDP or FSDP2.
    """

    steps: int = 1000
    batch: int = 32
    accumulate: int = 1
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    decay_all: bool = False
    warmup: int = 0
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    floor: float = 0.0
    clip: float | None = 1.0
    autocast: Literal["bfloat16"] | None = None
    seed: int = 0
    log_every: int = 10
    evaluate_every: int = 0
    checkpoint_every: int = 0
    checkpoint_seconds: float = 120.0
    parallel: Literal["ddp", "fsdp"] = "ddp"

    def __post_init__(self):
        for name in ("steps", "batch", "accumulate"):
            _require(getattr(self, name) >= 1, f"train.{name} is {getattr(self, name)}, not >= 1")
        for name in (
            "lr", "eps", "weight_decay", "warmup", "seed", "log_every", "evaluate_every",
            "checkpoint_every", "checkpoint_seconds",
        ):  # fmt: skip
            _require(getattr(self, name) >= 0, f"train.{name} is {getattr(self, name)}, not >= 0")
        _require(0 <= self.floor <= 1, f"train.floor is {self.floor}: a fraction of lr, 0 to 1")
        _require(all(0 <= b < 1 for b in self.betas), f"train.betas are {self.betas}, not in [0,1)")
        _require(self.clip is None or self.clip > 0, f"train.clip is {self.clip}: > 0 or none")
        _require(
            self.batch % self.accumulate == 0,
            f"train.batch {self.batch} does not divide into train.accumulate {self.accumulate}",
        )


@dataclass(frozen=True)
class Preset:
    """A model, its data and its training, by a name that a system gives it.

    model, data: frozen dataclasses of the system's ``model_config`` and ``data_config``.
    about: a line for people: what it is, or the paper and section it comes from.
    """

    model: Any
    data: Any
    train: Train = field(default_factory=Train)
    about: str = ""


def _require(true: bool, otherwise: str) -> None:
    if not true:
        raise ConfigError(otherwise)


# --- to JSON and back -----------------------------------------------------------------------------


def to_json(value: Any) -> Any:
    """A configuration as what ``json`` writes; tuples become lists. Raises ConfigError."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [to_json(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ConfigError(f"a configuration cannot hold {value!r}, of type {type(value).__name__}")


def from_json(cls: type, value: Any, where: str = "") -> Any:
    """The dataclass ``cls`` from what ``to_json`` made of one.

    Fields that are absent take their defaults. Raises ConfigError, naming the place, for a key
    that is no field, a missing field without a default, and a value of another type.
    """
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where or cls.__name__} is {value!r}, not an object")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    prefix = f"{where}." if where else ""
    for key in value:
        if key not in fields:
            raise ConfigError(unknown(f"{prefix}{key}", key, fields, prefix))
    given = {k: _convert(hints[k], v, f"{prefix}{k}") for k, v in value.items()}
    for name, f in fields.items():
        if (
            name not in given
            and f.default is dataclasses.MISSING
            and f.default_factory is dataclasses.MISSING
        ):
            raise ConfigError(f"{prefix}{name} is missing")
    return _made(cls, given)


def _made(cls: type, given: dict[str, Any]) -> Any:
    try:
        return cls(**given)
    except ConfigError:
        raise
    except (ValueError, TypeError) as e:
        raise ConfigError(f"{cls.__name__}: {e}") from e


def _convert(kind: Any, value: Any, where: str) -> Any:
    """``value`` of JSON as the annotation ``kind``; raises ConfigError."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        for option in arguments:
            with contextlib.suppress(ConfigError):
                return _convert(option, value, where)
    elif origin is Literal:
        if any(value == a and type(value) is type(a) for a in arguments):
            return value
        names = ", ".join(map(str, arguments))
        raise ConfigError(f"{where} is {value!r}: one of {names}{_near(value, arguments)}")
    elif origin is tuple and isinstance(value, list | tuple):
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_convert(arguments[0], v, f"{where}[{k}]") for k, v in enumerate(value))
        if len(arguments) != len(value):
            raise ConfigError(f"{where} has {len(value)} values, not {len(arguments)}")
        each = zip(arguments, value, strict=True)
        return tuple(_convert(a, v, f"{where}[{k}]") for k, (a, v) in enumerate(each))
    elif origin is dict and isinstance(value, Mapping):
        return {k: _convert(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
    elif dataclasses.is_dataclass(kind):
        if isinstance(value, kind):
            return value
        return from_json(kind, value, where)
    elif kind is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    elif kind in (None, type(None)):
        if value is None:
            return None
    elif type(value) is kind:
        return value
    raise ConfigError(f"{where} is {value!r}, not {_told(kind)}")


def _told(kind: Any) -> str:
    known = {int: "an integer", float: "a number", bool: "true or false", str: "a text"}
    if kind in (None, type(None)):
        return "none"
    if typing.get_origin(kind) is tuple:
        return "a list"
    if typing.get_origin(kind) is Literal:
        return " or ".join(map(str, typing.get_args(kind)))
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return " or ".join(_told(a) for a in typing.get_args(kind))
    return known.get(kind, getattr(kind, "__name__", str(kind)))


def unknown(what: str, name: str, known: Iterable[str], prefix: str = "") -> str:
    """A sentence for a name that is not ``known``, with the nearest ones or all of them."""
    known = list(known)
    near = _near(name, known, prefix)
    return f"there is no {what}{near or ': there is ' + ', '.join(prefix + k for k in known)}"


def _near(value: Any, known: Iterable[Any], prefix: str = "") -> str:
    close = difflib.get_close_matches(str(value), [str(k) for k in known], 3, 0.6)
    return f"; did you mean {' or '.join(prefix + c for c in close)}?" if close else ""


# --- from the command line ------------------------------------------------------------------------


def override(preset: Preset, settings: Iterable[str]) -> Preset:
    """``preset`` with ``settings`` such as ``train.lr=3e-3`` or ``model.layers=conv,linear``.

    A value is JSON or else a text; ``none`` is None, and a list may be written with commas alone.
    Raises ConfigError.
    """
    for text in settings:
        path, equals, value = text.partition("=")
        if not equals or not path.strip():
            raise ConfigError(f"--set {text}: not NAME=VALUE, such as train.lr=3e-3")
        preset = _put(preset, path.strip().split("."), value.strip(), "")
    return preset


def _put(config: Any, path: list[str], text: str, where: str) -> Any:
    name, *rest = path
    prefix = f"{where}." if where else ""
    fields = [f.name for f in dataclasses.fields(config) if f.init]
    if name not in fields:
        raise ConfigError(unknown(f"{prefix}{name}", name, fields, prefix))
    old = getattr(config, name)
    if rest:
        if not dataclasses.is_dataclass(old):
            raise ConfigError(f"{prefix}{name} has no parts, so no {'.'.join(path)}")
        new = _put(old, rest, text, f"{prefix}{name}")
    elif dataclasses.is_dataclass(old):
        parts = ", ".join(f"{prefix}{name}.{f.name}" for f in dataclasses.fields(old))
        raise ConfigError(f"{prefix}{name} is set by its parts: {parts}")
    else:
        new = _parsed(typing.get_type_hints(type(config))[name], text, f"{prefix}{name}")
    return _made(type(config), {f: getattr(config, f) for f in fields} | {name: new})


def _parsed(kind: Any, text: str, where: str) -> Any:
    """The first reading of ``text`` that ``kind`` takes; the error is that of the likeliest."""
    readings: list[Any] = [_json(text)]
    if text.lower() in ("none", "true", "false"):
        readings.insert(0, {"none": None, "true": True, "false": False}[text.lower()])
    readings += [[_json(t.strip()) for t in text.split(",") if t.strip()], text]
    errors = []
    for reading in readings:
        try:
            return _convert(kind, reading, where)
        except ConfigError as e:
            errors.append(e)
    likeliest = 0 if typing.get_origin(kind) is not tuple else len(readings) - 2
    raise errors[likeliest]


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
