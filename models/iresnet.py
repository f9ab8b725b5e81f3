"""IResNet, the residual network of ArcFace (https://arxiv.org/abs/1801.07698), and its depths.

A pre-activation variant: batch norm comes first in a block and nothing follows the addition.
Parameter names, shapes and numerics are those of InsightFace's arcface_torch, so a state dict
of either loads into the other with strict=True.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

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
    """

    folds: ClassVar = (("conv1", "bn2"), ("conv2", "bn3"))  # see models.fold

    def __init__(self, in_channels: int, channels: int, *, stride: int) -> None:
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

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        out = self.bn3(self.conv2(out))
        out += identity
        return out


class IResNet(nn.Module):
    """Embeds face images.

    Args:
        blocks: in each of the four stages; see `BLOCKS`.
        embedding_dim: D, the length of an embedding.
        image_size: height and width of the images in pixels, a multiple of 16.
        width: factor on every channel count; it must leave whole multiples of 16.
        dropout: probability of dropping an input of the last fully connected layer, in [0, 1).

    Raises:
        UserError: an argument outside its range; see `check_iresnet`.
    """

    folds: ClassVar = (("conv1", "bn1"), ("fc", "features"))  # see models.fold

    def __init__(
        self,
        blocks: tuple[int, int, int, int],
        *,
        embedding_dim: int,
        image_size: int,
        width: float,
        dropout: float,
    ) -> None:
        super().__init__()
        check_iresnet(
            embedding_dim=embedding_dim, image_size=image_size, width=width, dropout=dropout
        )
        self.image_size = image_size
        stem = int(64 * width)
        self.conv1 = nn.Conv2d(3, stem, kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.prelu = PReLU(stem)
        self.layer1 = _stage(stem, stem, blocks[0])
        self.layer2 = _stage(stem, 2 * stem, blocks[1])
        self.layer3 = _stage(2 * stem, 4 * stem, blocks[2])
        self.layer4 = _stage(4 * stem, 8 * stem, blocks[3])
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
        x = self.prelu(self.bn1(self.conv1(images)))  # (B, 64, size, size)
        x = self.layer1(x)
        x = self.layer2(x)
        x = self.layer3(x)
        x = self.layer4(x)  # (B, 512, size / 16, size / 16)
        x = self.dropout(torch.flatten(self.bn2(x), 1))
        with torch.autocast(images.device.type, enabled=False):
            return self.features(self.fc(x.to(self.fc.weight.dtype)))


def _stage(in_channels: int, channels: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(
        IBasicBlock(in_channels, channels, stride=2),
        *(IBasicBlock(channels, channels, stride=1) for _ in range(blocks - 1)),
    )


def check_iresnet(*, embedding_dim: int, image_size: int, width: float, dropout: float) -> None:
    """Raise UserError, naming the argument, for what no IResNet can be built from."""
    check_sizes(embedding_dim=embedding_dim, image_size=image_size, multiple=16)
    check_share("dropout", dropout)
    check_width(width)
