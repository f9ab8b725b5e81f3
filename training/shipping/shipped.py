"""A network as it is shipped: what is done to images before it and to embeddings after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models import fold_batch_norm
from models.input import Input
from training.weights.learned_quality import LearnedQuality

EMBEDDINGS, QUALITY = "embeddings", "quality"
# What a graph may take: its words, and how it is described.
INPUTS: dict[str, dict[str, Any]] = {
    "float": {},
    **{
        f"uint8-{color}-{layout}": {"color": color, "layout": layout, "range": (0.0, 255.0)}
        for color in ("rgb", "bgr")
        for layout in ("nhwc", "nchw")
    },
}


@dataclass(frozen=True)
class Form:
    """What is put into the graph beside the network.

    Attributes:
        input: a key of INPUTS: "float" is RGB in [-1, 1] in NCHW, as networks take it; others are
            pixels, which the graph itself makes into that.
        flip_sum: whether the mirror image's embedding is added.
        normalized: whether embeddings have length 1.
    """

    input: str = "float"
    flip_sum: bool = False
    normalized: bool = False

    def described(self, size: int) -> Input:
        """What the graph is to be given."""
        return Input(size=size, **INPUTS[self.input])

    @property
    def takes_pixels(self) -> bool:
        return self.input != "float"


class Shipped(nn.Module):
    """A copy of a network, with BatchNorm folded, in the form that is shipped.

    Maps images as `form.described` says, float32 or uint8, to (B, D) float32; with `quality` to
    these and (B, 1) float32.
    """

    def __init__(
        self, network: nn.Module, form: Form, size: int, *, quality: LearnedQuality | None = None
    ) -> None:
        super().__init__()
        self._quality = quality
        # Not channels_last: exporters would write down how our PReLU walks through it.
        self.network = fold_batch_norm(network)
        self.network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self._form, self._input = form, form.described(size)
        self.eval().requires_grad_(False)

    @property
    def outputs(self) -> tuple[str, ...]:
        """What these are called."""
        return (EMBEDDINGS,) if self._quality is None else (EMBEDDINGS, QUALITY)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if self._form.takes_pixels:
            pixels = images.to(torch.float32)
            if self._input.layout == "nhwc":
                pixels = pixels.permute(0, 3, 1, 2).contiguous()
            if self._input.color == "bgr":
                pixels = pixels.flip(1)
            images = (pixels - 127.5) / 127.5
        if self._form.flip_sum:
            both = self.network(torch.cat([images, images.flip(3)]))
            rows = both.unflatten(0, (2, -1)).sum(0)
        else:
            rows = self.network(images)
        given = nn.functional.normalize(rows) if self._form.normalized else rows
        if self._quality is None:
            return given
        return given, self._quality.of(rows, summed=self._form.flip_sum).unsqueeze(1)
