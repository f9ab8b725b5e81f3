"""MobileFaceNet (https://arxiv.org/abs/1804.07573), in the two sizes that arcface_torch has of it.

Parameter names, shapes and numerics are arcface_torch's, so a state dict of either loads into the
other with strict=True.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from models.batch_norm import norm_add, norm_prelu
from models.prelu import PReLU
from models.sizes import check_images, check_sizes, check_width


@dataclass(frozen=True)
class Form:
    """What tells one MobileFaceNet from another: blocks a stage, and channels of the first."""

    blocks: tuple[int, int, int, int]
    channels: int


FORMS = {"mbf": Form((1, 4, 6, 2), 128), "mbf_large": Form((2, 8, 12, 4), 256)}


class Layers(nn.Module):
    """Runs `layers` one after another; in the names of parameters it is a level of its own."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class ConvNormPReLU(Layers):
    """A convolution, BatchNorm and PReLU."""

    def forward(self, x: Tensor) -> Tensor:
        conv, norm, prelu = self.layers
        return norm_prelu(norm, prelu, conv(x))


class ConvNorm(Layers):
    """A convolution and BatchNorm, and a map that is added to what they give."""

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        conv, norm = self.layers
        return norm(conv(x)) if added is None else norm_add(norm, conv(x), added)


class Bottleneck(nn.Module):
    """A 1x1 convolution to `hidden` channels, a 3x3 one of each channel alone, and a 1x1 one back.

    Maps (B, in_channels, H, W) to (B, channels, H / stride, W / stride); a residual one adds its
    input, and has stride 1.
    """

    def __init__(
        self, in_channels: int, channels: int, *, hidden: int, residual: bool = False
    ) -> None:
        super().__init__()
        self.residual = residual
        self.layers = nn.Sequential(
            _conv(in_channels, hidden, 1),
            _conv(hidden, hidden, 3, stride=1 if residual else 2, groups=hidden),
            ConvNorm(*_conv_norm(hidden, channels, 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        widen, spread, narrow = self.layers
        return narrow(spread(widen(x)), added=x if self.residual else None)


class MobileFaceNet(nn.Module):
    """Embeds face images.

    Args:
        form: which of them; see `FORMS`.
        embedding_dim: D, the length of an embedding.
        image_size: height and width of the images in pixels, a multiple of 16.
        width: factor on every channel count; a multiple of 0.25.

    Raises:
        UserError: an argument outside its range; see `check_mobilefacenet`.
    """

    in_own_dtype: ClassVar = ("conv_sep", "features")  # outside of autocast, see `forward`

    def __init__(self, form: Form, *, embedding_dim: int, image_size: int, width: float) -> None:
        super().__init__()
        check_mobilefacenet(embedding_dim=embedding_dim, image_size=image_size, width=width)
        self.image_size = image_size
        first, second, third, fourth = form.blocks
        c, unit = int(form.channels * width), int(64 * width)
        self.layers = nn.ModuleList(
            [
                _conv(3, c, 3, stride=2),
                # A single block there is a convolution, in groups of two channels or four.
                _conv(c, c, 3, groups=unit) if first == 1 else _stage(c, 2 * unit, first),
                Bottleneck(c, c, hidden=2 * unit),
                _stage(c, 2 * unit, second),
                Bottleneck(c, 2 * c, hidden=4 * unit),
                _stage(2 * c, 4 * unit, third),
                Bottleneck(2 * c, 2 * c, hidden=8 * unit),
                _stage(2 * c, 4 * unit, fourth),
            ]
        )
        self.conv_sep = _conv(2 * c, 8 * unit, 1)
        self.features = Embedding(8 * unit, embedding_dim, kernel=image_size // 16)

        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Embed `images` (B, 3, image_size, image_size), floating, as (B, embedding_dim).

        From the last 1x1 convolution on all runs in the dtype of the weights, float32 unless the
        network was moved to another, under autocast too. So are the embeddings.

        Raises:
            ValueError: images of another size, or not yet normalized to a floating dtype.
        """
        check_images(images, self.image_size)
        x = images
        for layer in self.layers:
            x = layer(x)
        with torch.autocast(images.device.type, enabled=False):
            x = self.conv_sep(x.to(next(self.conv_sep.parameters()).dtype))
            return self.features(x)


class Embedding(nn.Module):
    """A convolution of each channel alone over the whole map, then a linear layer and BatchNorm.

    (B, channels, kernel, kernel) → (B, embedding_dim).
    """

    folds: ClassVar = (("layers.2", "layers.3"),)  # see models.fold

    def __init__(self, channels: int, embedding_dim: int, *, kernel: int) -> None:
        super().__init__()
        whole = nn.Conv2d(channels, channels, kernel, groups=channels, bias=False)
        self.layers = nn.Sequential(
            Layers(whole, nn.BatchNorm2d(channels)),
            nn.Flatten(),
            nn.Linear(channels, embedding_dim, bias=False),
            nn.BatchNorm1d(embedding_dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def _conv_norm(
    in_channels: int, channels: int, kernel: int, *, stride: int = 1, groups: int = 1
) -> tuple[nn.Module, nn.Module]:
    convolution = nn.Conv2d(
        in_channels, channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False
    )
    return convolution, nn.BatchNorm2d(channels)


def _conv(
    in_channels: int, channels: int, kernel: int, *, stride: int = 1, groups: int = 1
) -> ConvNormPReLU:
    layers = _conv_norm(in_channels, channels, kernel, stride=stride, groups=groups)
    return ConvNormPReLU(*layers, PReLU(channels))


def _stage(channels: int, hidden: int, blocks: int) -> Layers:
    return Layers(
        *(Bottleneck(channels, channels, hidden=hidden, residual=True) for _ in range(blocks))
    )


def check_mobilefacenet(*, embedding_dim: int, image_size: int, width: float) -> None:
    """Raise UserError, naming the argument, for what no MobileFaceNet can be built from."""
    check_sizes(embedding_dim=embedding_dim, image_size=image_size, multiple=16)
    check_width(width)
