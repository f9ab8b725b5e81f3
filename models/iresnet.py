"""IResNet, the residual network of ArcFace (https://arxiv.org/abs/1801.07698), and its depths.

A pre-activation variant: batch norm comes first in a block and nothing follows the addition.
Parameter names, shapes and numerics are those of InsightFace's arcface_torch, so a state dict
of either loads into the other with strict=True. What it can have beside that is called as in
ElasticFace (squeeze and excitation) and HSTFaceNet (attention).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facestream import UserError
from models.batch_norm import norm_add, norm_fork, norm_prelu
from models.prelu import PReLU
from models.sizes import check_images, check_share, check_sizes, check_width

# Blocks in each of the four stages.
BLOCKS: dict[str, tuple[int, int, int, int]] = {
    "iresnet10": (1, 1, 1, 1),
    "iresnet18": (2, 2, 2, 2),
    "iresnet34": (3, 4, 6, 3),
    "iresnet50": (3, 4, 14, 3),
    "iresnet100": (3, 13, 30, 3),
    "iresnet200": (6, 26, 60, 6),
}
STAGES = ("layer1", "layer2", "layer3", "layer4")


class IBasicBlock(nn.Module):
    """Two 3x3 convolutions around a PReLU, added to the input; stride on the second one.

    Maps (B, in_channels, H, W) to (B, channels, H / stride, W / stride).

    Args:
        se: whether what is added goes through `SqueezeExcitation` first.
    """

    folds: ClassVar = (("conv1", "bn2"), ("conv2", "bn3"))  # see models.fold
    folds_ahead: ClassVar = (("bn1", "conv1"),)

    def __init__(self, in_channels: int, channels: int, *, stride: int, se: bool = False) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.prelu = PReLU(channels)
        self.conv2 = nn.Conv2d(
            channels, channels, kernel_size=3, stride=stride, padding=1, bias=False
        )
        self.bn3 = nn.BatchNorm2d(channels)
        self.downsample = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, kernel_size=1, stride=stride, bias=False),
                nn.BatchNorm2d(channels),
            )
        self.se_block = SqueezeExcitation(channels) if se else None

    def forward(self, x: Tensor) -> Tensor:
        out, x = norm_fork(self.bn1, x)
        identity = x if self.downsample is None else self.downsample(x)
        out = self.conv2(norm_prelu(self.bn2, self.prelu, self.conv1(out)))
        if self.se_block is None:
            return norm_add(self.bn3, out, identity)
        out = self.se_block(self.bn3(out))
        out += identity
        return out


class SqueezeExcitation(nn.Module):
    """Each channel of (B, C, H, W) times a factor that the means of all decide
    (https://arxiv.org/abs/1709.01507)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // 16, kernel_size=1, bias=False)
        self.fc2 = nn.Conv2d(channels // 16, channels, kernel_size=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3), keepdim=True)
        return x * self.fc2(self.fc1(means).relu()).sigmoid()


class SelfAttention(nn.Module):
    """Attention between the pixels of (B, C, H, W), added to them (https://arxiv.org/abs/1805.08318).

    Its share, `gamma`, is learned from zero: at the start nothing is added.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query_conv = nn.Conv2d(channels, channels // 8, kernel_size=1)
        self.key_conv = nn.Conv2d(channels, channels // 8, kernel_size=1)
        self.value_conv = nn.Conv2d(channels, channels, kernel_size=1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            conv(x).flatten(2).transpose(1, 2)[:, None]  # (B, 1, H · W, C or C / 8)
            for conv in (self.query_conv, self.key_conv, self.value_conv)
        )
        seen = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        added = seen[:, 0].transpose(1, 2).unflatten(2, x.shape[2:])
        return x + self.gamma.to(added.dtype) * added


class IResNet(nn.Module):
    """Embeds face images.

    Args:
        embedding_dim: D, the length of an embedding.
        image_size: height and width of the images in pixels, a multiple of 16.
        blocks: in each of the four stages; see `BLOCKS`.
        width: factor on every channel count; it must leave whole multiples of 16.
        dropout: probability of dropping an input of the last fully connected layer, in [0, 1).
        se: whether every block has squeeze and excitation.
        attention: numbers of the stages, 1 to 4, that `SelfAttention` follows. Its cost grows with
            the square of the pixels: 49 after the last stage at 112, four times as many after each
            earlier one.

    Raises:
        UserError: an argument outside its range; see `check_iresnet`.
    """

    folds: ClassVar = (("conv1", "bn1"), ("fc", "features"))  # see models.fold

    def __init__(
        self,
        *,
        embedding_dim: int,
        image_size: int,
        blocks: Sequence[int],
        width: float,
        dropout: float,
        se: bool,
        attention: Sequence[int],
    ) -> None:
        super().__init__()
        check_iresnet(
            embedding_dim=embedding_dim,
            image_size=image_size,
            blocks=blocks,
            width=width,
            dropout=dropout,
            se=se,
            attention=attention,
        )
        self.image_size = image_size
        stem = int(64 * width)
        self.conv1 = nn.Conv2d(3, stem, kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.prelu = PReLU(stem)
        self.layer1 = _stage(stem, stem, blocks[0], se=se)
        self.layer2 = _stage(stem, 2 * stem, blocks[1], se=se)
        self.layer3 = _stage(2 * stem, 4 * stem, blocks[2], se=se)
        self.layer4 = _stage(4 * stem, 8 * stem, blocks[3], se=se)
        self.attended = {f"layer{stage}": f"attn{n}" for n, stage in enumerate(attention, start=1)}
        for stage, name in zip(attention, self.attended.values()):
            self.add_module(name, SelfAttention(stem * 2 ** (stage - 1)))
        self.bn2 = nn.BatchNorm2d(8 * stem)
        self.dropout = nn.Dropout(dropout, inplace=True)
        self.fc = nn.Linear(8 * stem * (image_size // 16) ** 2, embedding_dim)
        self.features = nn.BatchNorm1d(embedding_dim)
        # The margin head works on directions: a learned scale per feature would only bend them.
        self.features.weight.requires_grad_(False)

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, mean=0.0, std=0.1)

    def forward(self, images: Tensor) -> Tensor:
        """Embed `images` (B, 3, image_size, image_size), floating, as (B, embedding_dim).

        The last fully connected layer and batch norm run in the dtype of their weights, float32
        unless the network was moved to another, under autocast too. So are the embeddings.

        Raises:
            ValueError: images of another size, or not yet normalized to a floating dtype.
        """
        check_images(images, self.image_size)
        x = norm_prelu(self.bn1, self.prelu, self.conv1(images))  # (B, 64, size, size)
        for stage in STAGES:
            x = getattr(self, stage)(x)
            if stage in self.attended:
                x = getattr(self, self.attended[stage])(x)
        # (B, 512, size / 16, size / 16)
        x = self.dropout(torch.flatten(self.bn2(x), 1))
        with torch.autocast(images.device.type, enabled=False):
            return self.features(self.fc(x.to(self.fc.weight.dtype)))


def _stage(in_channels: int, channels: int, blocks: int, *, se: bool) -> nn.Sequential:
    return nn.Sequential(
        IBasicBlock(in_channels, channels, stride=2, se=se),
        *(IBasicBlock(channels, channels, stride=1, se=se) for _ in range(blocks - 1)),
    )


def check_iresnet(
    *,
    embedding_dim: int,
    image_size: int,
    blocks: Sequence[int],
    width: float,
    dropout: float,
    se: bool,
    attention: Sequence[int],
) -> None:
    """Raise UserError, naming the argument, for what no IResNet can be built from."""
    check_sizes(embedding_dim=embedding_dim, image_size=image_size, multiple=16)
    check_share("dropout", dropout)
    check_width(width)
    if not _whole_numbers(blocks) or len(blocks) != 4 or min(blocks) < 1:
        raise UserError(f"blocks is {blocks}: it must be four numbers of at least 1, a stage each")
    if type(se) is not bool:
        raise UserError(f"se is {se}: it must be true or false")
    stages = list(range(1, 5))
    if not _whole_numbers(attention) or list(attention) != [s for s in stages if s in attention]:
        raise UserError(f"attention is {attention}: it must be some of {stages}, in order")


def _whole_numbers(values: Any) -> bool:
    several = isinstance(values, (list, tuple))
    return several and all(type(value) is int for value in values)
