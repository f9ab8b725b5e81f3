"""EdgeFace (https://arxiv.org/abs/2307.01838), for small devices: EdgeNeXt of low rank.

EdgeNeXt (https://arxiv.org/abs/2206.10589) is ConvNeXt's block with, at the end of a stage,
attention between channels instead of pixels. Parameter names, shapes and, but for rounding,
numerics are those of the published weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.sizes import check_images, check_sizes

_BLOCKS = (3, 3, 9, 3)
_KERNELS = (3, 5, 7, 9)
_SCALES = (0, 2, 3, 4)  # parts of the channels where a stage ends with attention
_WITH_POSITIONS = 1  # the stage whose attention knows where each pixel is
_EPS = 1e-6  # of all normalization

STAGES = tuple(f"model.stages.{stage}.blocks" for stage in range(4))
UNDECAYED = ("temperature",)

Linear = Callable[[int, int], nn.Module]  # from inputs and outputs, with a bias


@dataclass(frozen=True)
class Form:
    """What tells one of them from another.

    Attributes:
        channels: of each stage.
        heads: of each attention.
        rank: of a product, as a share of its inputs or outputs, of which there are fewer; None:
            full.
    """

    channels: tuple[int, int, int, int]
    heads: int
    rank: float | None


FORMS = {
    "edgeface_xs": Form((32, 64, 100, 192), heads=4, rank=0.6),
    "edgeface_s": Form((48, 96, 160, 304), heads=8, rank=0.5),
    "edgeface_base": Form((80, 160, 288, 584), heads=8, rank=None),
}


class EdgeFace(nn.Module):
    """Embeds face images.

    Args:
        form: which of them; see `FORMS`.
        embedding_dim: D, the length of an embedding.
        image_size: height and width of the images in pixels, 32 or more.

    Raises:
        UserError: an argument outside its range; see `check_edgeface`.
    """

    def __init__(self, form: Form, *, embedding_dim: int, image_size: int) -> None:
        super().__init__()
        check_edgeface(embedding_dim=embedding_dim, image_size=image_size)
        self.image_size = image_size
        self.model = EdgeNeXt(form, embedding_dim)
        for module in self.modules():
            # The two parts of a product of low rank begin as torch's layers do.
            if isinstance(module, nn.Conv2d) or (form.rank is None and type(module) is nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02, a=-0.04, b=0.04)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Embed `images` (B, 3, image_size, image_size), floating, as (B, embedding_dim).

        What follows the last block runs in the dtype of its weights, float32 unless the network was
        moved to another, under autocast too. So are the embeddings.

        Raises:
            ValueError: images of another size, or not yet normalized to a floating dtype.
        """
        check_images(images, self.image_size)
        return self.model(images)


class EdgeNeXt(nn.Module):
    """(B, 3, H, W) → (B, embedding_dim)."""

    def __init__(self, form: Form, embedding_dim: int) -> None:
        super().__init__()
        linear = nn.Linear if form.rank is None else _of_rank(form.rank)
        first, last = form.channels[0], form.channels[-1]
        self.stem = nn.Sequential(nn.Conv2d(3, first, kernel_size=4, stride=4), MapNorm(first))
        self.stages = nn.Sequential(*(Stage(form, stage, linear) for stage in range(4)))
        self.head = Head(last, embedding_dim, linear)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stages(self.stem(images))  # (B, channels, H / 32, W / 32)
        with torch.autocast(images.device.type, enabled=False):
            return self.head(x.to(self.head.norm.weight.dtype))


class Stage(nn.Module):
    """A convolution to half the height and width, but at the first, and blocks."""

    def __init__(self, form: Form, number: int, linear: Linear) -> None:
        super().__init__()
        channels, scales = form.channels[number], _SCALES[number]
        self.downsample = nn.Sequential()
        if number:
            before = form.channels[number - 1]
            self.downsample.append(MapNorm(before))
            self.downsample.append(nn.Conv2d(before, channels, kernel_size=2, stride=2))
        blocks: list[nn.Module] = [
            ConvBlock(channels, _KERNELS[number], linear)
            for _ in range(_BLOCKS[number] - (scales > 0))
        ]
        if scales:
            positions = number == _WITH_POSITIONS
            blocks.append(AttentionBlock(channels, scales, form.heads, linear, positions=positions))
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.downsample(x))


class ConvBlock(nn.Module):
    """A convolution of each channel alone and two layers on each pixel, added to the input."""

    def __init__(self, channels: int, kernel: int, linear: Linear) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=_EPS)
        self.mlp = Mlp(channels, linear)
        self.gamma = nn.Parameter(torch.full((channels,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv_dw(x).permute(0, 2, 3, 1)  # (B, H, W, channels)
        y = self.gamma * self.mlp(self.norm(y))
        return x + y.permute(0, 3, 1, 2)


class AttentionBlock(nn.Module):
    """Parts of the channels convolved one on top of another, attention between the channels, and
    two layers on each pixel, added to the input."""

    def __init__(
        self, channels: int, scales: int, heads: int, linear: Linear, *, positions: bool
    ) -> None:
        super().__init__()
        part = math.ceil(channels / scales)
        self.convs = nn.ModuleList(
            [nn.Conv2d(part, part, 3, padding=1, groups=part) for _ in range(scales - 1)]
        )
        self.pos_embd = Positions(channels) if positions else None
        self.norm_xca = nn.LayerNorm(channels, eps=_EPS)
        self.gamma_xca = nn.Parameter(torch.full((channels,), 1e-6))
        self.xca = ChannelAttention(channels, heads, linear)
        self.norm = nn.LayerNorm(channels, eps=_EPS)
        self.mlp = Mlp(channels, linear)
        self.gamma = nn.Parameter(torch.full((channels,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        *parts, last = x.chunk(len(self.convs) + 1, dim=1)
        convolved: list[Tensor] = []
        for part, conv in zip(parts, self.convs):
            convolved.append(conv(part + convolved[-1] if convolved else part))
        y = torch.cat([*convolved, last], dim=1)
        if self.pos_embd is not None:
            y = y + self.pos_embd(y.shape[2], y.shape[3])
        tokens = y.flatten(2).transpose(1, 2)  # (B, H · W, channels)
        tokens = tokens + self.gamma_xca * self.xca(self.norm_xca(tokens))
        tokens = self.gamma * self.mlp(self.norm(tokens))
        return x + tokens.transpose(1, 2).unflatten(2, x.shape[2:])


class ChannelAttention(nn.Module):
    """Attention of (B, N, channels) between channels (https://arxiv.org/abs/2106.09681)."""

    def __init__(self, channels: int, heads: int, linear: Linear) -> None:
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = linear(channels, 3 * channels)
        self.proj = linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        split = self.qkv(x).unflatten(2, (3, self.heads, -1))  # (B, N, 3, heads, c)
        query, key, value = split.permute(2, 0, 3, 4, 1).unbind(0)  # (B, heads, c, N)
        similar = F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).transpose(-2, -1)
        mixed = (similar * self.temperature).softmax(dim=-1) @ value
        return self.proj(mixed.permute(0, 3, 1, 2).flatten(2))


class Positions(nn.Module):
    """Sines and cosines of a map's rows and columns, mixed to (1, channels, H, W)."""

    def __init__(self, channels: int, waves: int = 32) -> None:
        super().__init__()
        self.waves = waves
        self.token_projection = nn.Conv2d(2 * waves, channels, kernel_size=1)

    def forward(self, height: int, width: int) -> Tensor:
        weight = self.token_projection.weight
        number = torch.arange(self.waves, dtype=weight.dtype, device=weight.device)
        period = 10_000 ** (2 * number.div(2, rounding_mode="floor") / self.waves)

        def along(length: int) -> Tensor:
            """(length, waves), from more than 0 to a whole turn."""
            place = torch.arange(1, length + 1, dtype=weight.dtype, device=weight.device)
            angle = (place / (length + 1e-6) * 2 * math.pi)[:, None] / period
            return torch.stack([angle[:, 0::2].sin(), angle[:, 1::2].cos()], dim=2).flatten(1)

        rows = along(height)[:, None].expand(height, width, self.waves)
        columns = along(width)[None].expand(height, width, self.waves)
        waves = torch.cat([rows, columns], dim=2)[None]  # (1, H, W, 2 · waves)
        return self.token_projection(waves.permute(0, 3, 1, 2))


class Mlp(nn.Module):
    """(…, channels) → (…, 4 · channels) → (…, channels)."""

    def __init__(self, channels: int, linear: Linear) -> None:
        super().__init__()
        self.fc1 = linear(channels, 4 * channels)
        self.act = nn.GELU()
        self.fc2 = linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Head(nn.Module):
    """The mean of each channel, normalized, as an embedding."""

    def __init__(self, channels: int, embedding_dim: int, linear: Linear) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=_EPS)
        self.fc = linear(channels, embedding_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(x.mean((2, 3))))


class MapNorm(nn.LayerNorm):
    """LayerNorm of each pixel's channels, for (B, channels, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=_EPS)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class LowRankLinear(nn.Module):
    """A linear layer as the product of two."""

    def __init__(self, inputs: int, outputs: int, *, share: float) -> None:
        super().__init__()
        rank = max(2, int(min(inputs, outputs) * share))
        self.linear1 = nn.Linear(inputs, rank, bias=False)
        self.linear2 = nn.Linear(rank, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear2(self.linear1(x))


def _of_rank(share: float) -> Linear:
    return lambda inputs, outputs: LowRankLinear(inputs, outputs, share=share)


def check_edgeface(*, embedding_dim: int, image_size: int) -> None:
    """Raise UserError, naming the argument, for what no EdgeFace can be built from."""
    check_sizes(embedding_dim=embedding_dim, image_size=image_size, least=32)
