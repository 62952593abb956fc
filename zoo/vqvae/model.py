"""A convolutional autoencoder whose latent vectors are codes of a codebook.

Van den Oord, Vinyals, Kavukcuoglu, "Neural Discrete Representation Learning" (arXiv 1711.00937,
section 3), with the gradient of Fifty et al., "Restructuring Vector Quantization with the Rotation
Trick" (arXiv 2410.06424). Everything about codes is tile kernels; convolutions are PyTorch's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor, nn

from zoo.nn import GroupedVQ, ResidualVQ, VectorQuantize
from zoo.training import Pretrained


@dataclass(frozen=True)
class Config:
    """Sizes of a model, and how it quantises.

    channels: of an image. hidden: channels of the encoder's stages; each after the first halves
    the sides. dim: of a code. codes: how many. quantizers: residual ones after each other.
    groups: parts of a vector with codebooks of their own. gradient: past the choice of a code,
    see ``zoo.kernels.vector_quantize``. reset: codes chosen by fewer vectors are replaced; 0 never.
    learned: codes are trained by a loss of their own, not moving averages. kmeans: whether the
    first batch places the codes.
    """

    channels: int = 1
    hidden: tuple[int, ...] = (16, 32)
    dim: int = 8
    codes: int = 256
    quantizers: int = 1
    groups: int = 1
    gradient: Literal["rotation", "ste", "rotation_tangent", "reflection"] = "rotation"
    cosine: bool = False
    learned: bool = False
    decay: float = 0.8
    commitment: float = 1.0
    reset: float = 0.0
    kmeans: bool = False


class Output(NamedTuple):
    """image: [B, channels, H, W], the reconstruction; index: [B, h, w], or with one more axis;
    loss: the quantiser's, 0 in eval mode; latent: [B, dim, h, w], before it is quantised."""

    image: Tensor
    index: Tensor
    loss: Tensor
    latent: Tensor


class VQVAE(Pretrained, nn.Module):
    """Images [B, channels, H, W] to codes and back; H and W are multiples of 2 ** (stages - 1)."""

    config_class = Config
    model_type = "vqvae"
    quantizer: Callable[..., nn.Module] = VectorQuantize
    grouped: Callable[..., nn.Module] = GroupedVQ
    residual: Callable[..., nn.Module] = ResidualVQ

    def __init__(self, config: Config):
        super().__init__()
        self.config = c = config
        self.encoder = encoder(c)
        options = {
            "decay": c.decay, "use_cosine_sim": c.cosine, "commitment_weight": c.commitment,
            "rotation_trick": c.gradient, "learnable_codebook": c.learned,
            "threshold_ema_dead_code": c.reset, "kmeans_init": c.kmeans,
            "accept_image_fmap": True,
        }  # fmt: skip
        make = type(self)
        if c.quantizers > 1:
            self.vq = make.residual(c.dim, c.codes, c.quantizers, **options)
        elif c.groups > 1:
            self.vq = make.grouped(c.dim, c.codes, c.groups, **options)
        else:
            self.vq = make.quantizer(c.dim, c.codes, **options)
        self.decoder = decoder(c)

    def forward(self, image: Tensor) -> Output:
        """Encodes, quantises and decodes."""
        latent = self.encoder(image)
        q, index, loss = self.vq(latent)
        return Output(self.decoder(q), index, loss.sum(), latent)

    def encode(self, image: Tensor) -> Tensor:
        """The codes' indices of images, i64."""
        return self.vq(self.encoder(image))[1]

    def decode(self, index: Tensor) -> Tensor:
        """Images of codes' indices."""
        return self.decoder(self.vq.get_output_from_indices(index).movedim(-1, 1))


class Residual(nn.Sequential):
    """x plus two convolutions of it."""

    def __init__(self, width: int):
        super().__init__(
            nn.GELU(), nn.Conv2d(width, width, 3, padding=1),
            nn.GELU(), nn.Conv2d(width, width, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


def encoder(c: Config) -> nn.Sequential:
    """Images to latent vectors [B, dim, h, w]."""
    layers: list[nn.Module] = [nn.Conv2d(c.channels, c.hidden[0], 3, padding=1)]
    for narrow, wide in zip(c.hidden, c.hidden[1:], strict=False):
        layers += [nn.GELU(), nn.Conv2d(narrow, wide, 4, stride=2, padding=1)]
    last = c.hidden[-1]
    return nn.Sequential(*layers, Residual(last), nn.GELU(), nn.Conv2d(last, c.dim, 1))


def decoder(c: Config) -> nn.Sequential:
    """Latent vectors to images."""
    last = c.hidden[-1]
    layers: list[nn.Module] = [nn.Conv2d(c.dim, last, 3, padding=1), Residual(last)]
    for wide, narrow in zip(c.hidden[:0:-1], c.hidden[-2::-1], strict=True):
        layers += [nn.GELU(), nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1)]
    return nn.Sequential(*layers, nn.GELU(), nn.Conv2d(c.hidden[0], c.channels, 3, padding=1))
