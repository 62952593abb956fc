"""Models in folders as Hugging Face lays them out: ``config.json`` and ``model.safetensors``.

Weights are safetensors and the configuration is JSON: loading runs no code that a file brings.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from zoo.training.config import ConfigError, from_json, to_json
from zoo.training.files import (
    LoadError,
    read_json,
    read_tensors,
    write_file,
    write_json,
    write_tensors,
)

CONFIG, WEIGHTS = "config.json", "model.safetensors"
#: Keys of a config.json that say what it is of and not how large.
_ABOUT = ("model_type", "architectures", "torch_dtype", "dtype", "transformers_version")
_TIED = "tied:"


class Pretrained:
    """Mixed into an nn.Module whose ``__init__`` takes a dataclass and keeps it as ``config``.

    config_class: that dataclass. model_type: the name of the family, written into config.json; a
    reference has that of the model whose weights it loads.
    """

    config_class: ClassVar[type]
    model_type: ClassVar[str]
    config: Any

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors`` into ``folder``, which is made."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        about = {"model_type": self.model_type, "architectures": [type(self).__name__]}
        save_model(folder, self, about | to_json(self.config))  # type: ignore[arg-type]

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, device: Any = None, dtype: torch.dtype | None = None
    ) -> Self:
        """The model that ``save_pretrained`` wrote into a local folder, in eval mode.

        dtype converts the parameters and buffers that are floating-point. Raises LoadError, naming
        the file, for what is absent, cut short, of another model, or does not fit: nothing is
        loaded in part.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise LoadError(f"{folder} is no local folder; from_pretrained downloads nothing")
        found = read_json(folder / CONFIG)
        if found.get("model_type", cls.model_type) != cls.model_type:
            raise LoadError(
                f"{folder / CONFIG} is of a {found['model_type']}, not of a {cls.model_type}"
            )
        sizes = {k: v for k, v in found.items() if k not in _ABOUT}
        try:
            config = from_json(cls.config_class, sizes)
        except ConfigError as e:
            raise LoadError(f"{folder / CONFIG}: {e}") from None
        with torch.random.fork_rng(devices=[]):  # fresh weights are drawn, and then replaced
            model = cls(config)  # type: ignore[call-arg]
        load_weights(model, folder / WEIGHTS)  # type: ignore[arg-type]
        return model.to(device=device, dtype=dtype).eval()  # type: ignore[attr-defined]


def save_model(folder: Path, model: nn.Module, config: Mapping[str, Any]) -> None:
    """Both files of a model; each is replaced in one rename."""
    state = model.state_dict()
    write_file(folder / WEIGHTS, lambda p: write_weights(p, state))
    write_file(folder / CONFIG, lambda p: write_json(p, config))


def write_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """A state dict; of names that are one tensor the first is stored, the others refer to it."""
    first: dict[Any, str] = {}
    kept: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    for name, tensor in state.items():
        key = _place(tensor)
        if key in first:
            tied[_TIED + name] = first[key]
        else:
            first[key] = name
            kept[name] = tensor
    write_tensors(path, kept, tied)


def _place(tensor: Tensor) -> Any:
    """The same for two tensors if they are one; those without storage are never."""
    if not tensor.data_ptr():
        return id(tensor)
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict that ``write_weights`` wrote; raises LoadError."""
    tensors, metadata = read_tensors(path)
    for name, source in metadata.items():
        if name.startswith(_TIED):
            if source not in tensors:
                raise LoadError(f"{path}: {name} is tied to {source}, which is not there")
            tensors[name.removeprefix(_TIED)] = tensors[source]
    return tensors


def load_weights(model: nn.Module, path: Path) -> None:
    """``path`` into ``model``, whole or not at all; raises LoadError."""
    fit(model, read_weights(path), str(path))


def fit(model: nn.Module, given: Mapping[str, Tensor], origin: str) -> None:
    """Copy a state dict into ``model`` once every name, shape and type is known to fit.

    A tensor that has several names in the model needs one of them only; where more are given they
    must agree. Raises LoadError, which names ``origin``, and then has changed nothing.
    """
    state = model.state_dict()
    groups: dict[Any, list[str]] = {}
    for name, tensor in state.items():
        groups.setdefault(_place(tensor), []).append(name)
    missing, sources = [], {}
    for names in groups.values():
        there = [n for n in names if n in given]
        if not there:
            missing.append(names[0])
            continue
        sources[names[0]] = given[there[0]]
        for other in there[1:]:
            if not torch.equal(given[there[0]], given[other]):
                raise LoadError(f"{origin}: {there[0]} and {other} differ, here they are one")
    surplus = [n for n in given if n not in state]
    if missing or surplus:
        said = [f"{w} {_few(n)}" for w, n in (("lacks", missing), ("has also", surplus)) if n]
        raise LoadError(f"{origin} does not fit {type(model).__name__}: it {' and '.join(said)}")
    for name, tensor in sources.items():
        mine = state[name]
        if mine.shape != tensor.shape:
            raise LoadError(
                f"{origin}: {name} is {list(tensor.shape)}, the model's is {list(mine.shape)}"
            )
        if mine.dtype != tensor.dtype and not (
            mine.is_floating_point() and tensor.is_floating_point()
        ):
            raise LoadError(f"{origin}: {name} is {tensor.dtype}, the model's is {mine.dtype}")
    with torch.no_grad():
        for name, tensor in sources.items():
            state[name].copy_(tensor)


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
