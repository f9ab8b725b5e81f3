"""Every network of ours with its real structure and little work, for what all have to keep."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from models import Architecture

DIM, SIZE = 24, 32
# Name → options. Those of one build stand for each other.
SMALL: dict[str, dict[str, Any]] = {
    "iresnet10": {"width": 0.25},
    "iresnet": {"width": 0.25, "blocks": [1, 2, 1, 1], "se": True, "attention": [3, 4]},
    "mbf": {"width": 0.25},
    "vit": {"dim": 32, "depth": 2, "patch": 8},
    "edgeface_xs": {},
}


def small(name: str) -> Architecture:
    """Embeds images of 32 x 32 pixels in 24 dimensions."""
    return Architecture(name, embedding_dim=DIM, image_size=SIZE, options=SMALL[name])


def as_recognized(name: str) -> Architecture:
    """The same; but where tensors tell no size of images, of the usual one."""
    return replace(small(name), image_size=112) if name.startswith("edgeface") else small(name)


def images(batch: int = 4, *, seed: int = 1) -> Tensor:
    """(batch, 3, 32, 32) in [-1, 1], channels_last."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand(batch, 3, SIZE, SIZE, generator=generator) * 2 - 1
    return pixels.contiguous(memory_format=torch.channels_last)


def trained(name: str) -> nn.Module:
    """With statistics, scales and shifts away from their defaults, in train mode."""
    torch.manual_seed(0)
    model = small(name).create()
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            for value in (module.weight, module.running_var):
                nn.init.uniform_(value, 0.5, 2.0)
            for value in (module.bias, module.running_mean):
                nn.init.normal_(value)
    for key, parameter in model.named_parameters():
        if "gamma" in key:  # from almost 0, as if the layers before it were not there
            nn.init.uniform_(parameter, 0.1, 0.3)
    return model.train()
