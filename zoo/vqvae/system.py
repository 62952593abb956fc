"""``tkpy train vqvae``."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.nn import usage
from zoo.training import Preset, Row, System, Train
from zoo.vqvae import data, model, reference
from zoo.vqvae.data import Images
from zoo.vqvae.model import Config

#: Recipe of the rotation trick's VQ-VAE runs, at the scale of digits.
TRAIN = Train(
    steps=700, batch=64, lr=1e-3, betas=(0.9, 0.99), weight_decay=1e-4, clip=1.0,
    schedule="constant", log_every=50,
)  # fmt: skip


def _digits(about: str, **changes) -> Preset:
    return Preset(Config(**changes), Images(), TRAIN, about)


PRESETS = {
    "digits": _digits("8x8 digits, 4x4 codes of 8 numbers out of 256, the rotation trick"),
    "digits-ste": _digits("the same, straight through", gradient="ste"),
    "digits-reset": _digits("with dead codes replaced", reset=2.0),
    "digits-ste-reset": _digits("straight through, dead codes replaced", gradient="ste", reset=2.0),
    "digits-3d": _digits("codes of 3 numbers", dim=3),
    "digits-cosine": _digits("codes of length 1", cosine=True),
    "digits-residual": _digits("two quantisers after each other", quantizers=2, codes=64),
    "photos": Preset(
        Config(channels=3, hidden=(32, 64, 64), dim=16, codes=512),
        Images("photos"),
        replace(TRAIN, steps=2000),
        "16x16 patches of two photographs, 4x4 codes of 16 numbers out of 512",
    ),
}  # fmt: skip


class VQVAESystem(System):
    """The loss is the mean squared error of images and the quantiser's."""

    name = "vqvae"
    model_config = Config
    data_config = Images
    presets = PRESETS

    def build(self, config: Config, reference: bool = False) -> nn.Module:
        return _REFERENCE(config) if reference else model.VQVAE(config)

    def data(self, preset: Preset) -> data.Tensors:
        return data.split(preset.data)[0]

    def loss(self, model: nn.Module, batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        out = model(batch)
        error = F.mse_loss(out.image.float(), batch)
        return error + out.loss, {"reconstruction": error.detach(), "quantiser": out.loss.detach()}

    def evaluate(self, model: nn.Module, preset: Preset) -> list[Row]:
        train, test = data.split(preset.data)
        device = next(model.parameters()).device
        return [measured(model, train, test, device)]


def measured(model: nn.Module, train: data.Tensors, test: data.Tensors, device) -> Row:
    """What a model does to images that it was not trained on, by ``model.eval()``.

    mse: of reconstructions. error, relative_error: mean |e - q|^2 of latent vectors, and that over
    the mean |e|^2. length: mean |e|. usage, perplexity: of codes over all test images. probe:
    accuracy, on reconstructions, of a logistic regression fitted to training images; digits only.
    """
    images = test.images.to(device)
    out = model(images)
    e, q = (v.movedim(1, -1).double() for v in (out.latent, model.vq(out.latent)[0]))
    if model.config.cosine:
        e = F.normalize(e, dim=-1)
    distance, size = (e - q).square().sum(-1), e.square().sum(-1)
    used = [usage(i, model.config.codes) for i in _each(out.index, e.dim() - 1)]
    row: Row = {
        "mse": float(F.mse_loss(out.image.float(), images)),
        "error": float(distance.mean()),
        "relative_error": float(distance.sum() / size.sum()),
        "length": float(size.sqrt().mean()),
        **{n: sum(u[n] for u in used) / len(used) for n in ("usage", "perplexity")},
    }
    if test.labels is not None:
        row["probe"] = probe(train, out.image.float().cpu(), test.labels)
    return row


def probe(train: data.Tensors, images: Tensor, labels: Tensor) -> float:
    """The share of ``images`` that a logistic regression, fitted to ``train``, knows."""
    from sklearn.linear_model import LogisticRegression

    assert train.labels is not None
    known = LogisticRegression(max_iter=300).fit(train.images.flatten(1).numpy(), train.labels)
    return float(known.score(images.flatten(1).numpy(), labels))


def _each(index: Tensor, axes: int) -> list[Tensor]:
    """The indices of every quantiser."""
    return [index] if index.dim() == axes else list(torch.unbind(index, -1))


_REFERENCE = reference.VQVAE
system = VQVAESystem()
