"""How a network from elsewhere wants its images; ours take what `models.normalize` makes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from facestream import UserError

_COLORS = ("rgb", "bgr")
_LAYOUTS = ("nchw", "nhwc")
# Of the numbers in an Input: pixels stay finite in float32.
_SMALLEST, _LARGEST = 1e-6, 1e6


class InputError(UserError):
    """A description of an input that makes no sense: what was found, and what is allowed."""


@dataclass(frozen=True)
class Input:
    """What a network is given for an image; the defaults are what ours take.

    A pixel p in 0..255 becomes (low + (high - low) · p / 255 - mean) / std.

    Args:
        size: pixels of height and width; images of another size are resized to it.
        color: "rgb" or "bgr", the order of the channels.
        range: (low, high), what 0 and 255 become before mean and std.
        mean, std: in units of `range`; a number, or one for each channel in the order of `color`.
        layout: "nchw" or "nhwc".

    Raises:
        InputError: a value outside these.
    """

    size: int = 112
    color: str = "rgb"
    range: tuple[float, float] = (-1.0, 1.0)
    mean: float | tuple[float, float, float] = 0.0
    std: float | tuple[float, float, float] = 1.0
    layout: str = "nchw"

    def __post_init__(self) -> None:
        _check(type(self.size) is int and 0 < self.size <= 4096, "size", self.size, "1 to 4096")
        _check(self.color in _COLORS, "color", self.color, f"one of {', '.join(_COLORS)}")
        _check(self.layout in _LAYOUTS, "layout", self.layout, f"one of {', '.join(_LAYOUTS)}")
        low_high = _numbers(self.range, 2) and self.range[1] - self.range[0] >= _SMALLEST
        _check(low_high, "range", self.range, "[low, high], such as [-1, 1] or [0, 255]")
        for name in ("mean", "std"):
            value = getattr(self, name)
            one_or_three = _number(value) or _numbers(value, 3)
            expected = f"a number within ±{_LARGEST:g}, or three in the order of color"
            _check(one_or_three, name, value, expected)
        divides = all(std >= _SMALLEST for std in _three(self.std))
        _check(divides, "std", self.std, f"at least {_SMALLEST:g}")

    @classmethod
    def of(cls, values: Mapping[str, Any], *, size: int) -> Input:
        """From a configuration's mapping, which names what differs from the defaults.

        Args:
            size: where the mapping has none.

        Raises:
            InputError: as for `Input`, also for a name that is not there.
        """
        names = [field.name for field in fields(cls)]
        unknown = [name for name in values if name not in names]
        if unknown:
            raise InputError(f"{', '.join(map(str, unknown))}: expected some of {', '.join(names)}")
        frozen: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        return cls(**{"size": size, **frozen})

    def shape(self, batch: int) -> tuple[int, int, int, int]:
        """Of what a call returns for so many images."""
        sides = (self.size, self.size)
        return (batch, 3, *sides) if self.layout == "nchw" else (batch, *sides, 3)

    def from_normalized(self) -> tuple[list[float], list[float]]:
        """A scale and a shift of each channel that make its pixels of what `normalize` gives."""
        (low, high), means, stds = self.range, _three(self.mean), _three(self.std)
        half = (high - low) / 2
        scales = [half / std for std in stds]
        return scales, [(low + half - mean) / std for mean, std in zip(means, stds)]

    def __call__(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """(B, 3, H, W) uint8 RGB, left unchanged, to `shape(B)` of a floating dtype."""
        pixels = images.to(dtype)
        if images.shape[2:] != (self.size, self.size):
            resized = F.interpolate(
                images.float(), (self.size, self.size), mode="bilinear", antialias=True
            )
            pixels = resized.to(dtype)
        if self.color == "bgr":
            pixels = pixels.flip(1)
        low, high = self.range
        for channel, mean, std in zip(pixels.unbind(1), _three(self.mean), _three(self.std)):
            # Subtracted, then divided, as `normalize` does it, to the same bits.
            channel.sub_(255 * (mean - low) / (high - low)).div_(255 * std / (high - low))
        return pixels if self.layout == "nchw" else pixels.permute(0, 2, 3, 1)

    def __str__(self) -> str:
        """Such as "RGB in [-1, 1], 112 pixels, NCHW"."""
        ends = "[{:g}, {:g}]".format(*self.range)
        parts = [f"{self.color.upper()} in {ends}", f"{self.size} pixels", self.layout.upper()]
        if self.mean != 0 or self.std != 1:
            parts.insert(1, f"less {_as_text(self.mean)} over {_as_text(self.std)}")
        return ", ".join(parts)


def _check(holds: bool, name: str, value: object, allowed: str) -> None:
    if not holds:
        raise InputError(f"{name}={value!r}: expected {allowed}")


def _number(value: Any) -> bool:
    number = isinstance(value, (int, float)) and type(value) is not bool
    return number and -_LARGEST <= value <= _LARGEST


def _numbers(values: object, count: int) -> bool:
    return isinstance(values, tuple) and len(values) == count and all(map(_number, values))


def _three(value: float | tuple[float, float, float]) -> tuple[float, float, float]:
    return value if isinstance(value, tuple) else (value,) * 3


def _as_text(value: float | tuple[float, float, float]) -> str:
    return str(list(value)) if isinstance(value, tuple) else f"{value:g}"
