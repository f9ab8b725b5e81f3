"""3x3 convolutions by 2.25 times fewer products, where a compiler writes the loops around them.

Winograd's F(2x2, 3x3) (Lavin and Gray, 2015, arXiv:1509.09308): tiles of 4x4 pixels, which overlap
by two, and the weights are turned into 16 numbers each; their products are turned into 2x2 pixels.
Backward is two such products more. It is what a convolution computes but for rounding, of which
there is more in 16 bits, since what lies between the turns is rounded, too. Compiled, the turns
cost little beside the products; operation by operation they would cost more than they save.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_LEAST_CHANNELS = 128  # with 64 the turns cost more than the products save


class WinogradConv2d(nn.Conv2d):
    """An nn.Conv2d without bias, 3x3, stride 1, padding 1, whose compiled training is Winograd's.

    (B, C, H, W) floating, in channels_last → (B, O, H, W), in channels_last, of the input's dtype.
    Uncompiled and in evaluation it is torch's. `use_winograd` makes them.
    """

    def forward(self, input: Tensor) -> Tensor:
        if self.training and torch.compiler.is_compiling():
            return _Winograd.apply(input, self.weight)
        return super().forward(input)


def use_winograd(network: nn.Module) -> int:
    """Let each convolution of a network that it fits train so once it is compiled.

    Args:
        network: changed in place; names and tensors stay.

    Returns:
        How many there are.
    """
    found = [module for module in network.modules() if _fits(module)]
    for module in found:
        module.__class__ = WinogradConv2d
    return len(found)


def _fits(module: nn.Module) -> bool:
    if type(module) is not nn.Conv2d or module.bias is not None or module.groups > 1:
        return False
    if module.padding_mode != "zeros":
        return False
    form = (module.kernel_size, module.stride, module.padding, module.dilation)
    fewest = min(module.in_channels, module.out_channels)
    return form == ((3, 3), (1, 1), (1, 1), (1, 1)) and fewest >= _LEAST_CHANNELS


class _Winograd(torch.autograd.Function):
    """(B, C, H, W), (O, C, 3, 3) → (B, O, H, W)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        turned = _of_weights(weight.permute(2, 3, 0, 1)).to(x.dtype)  # (16, O, C)
        return _convolve(x, turned.mT)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        # With respect to x it is a convolution as well, by the weights turned round.
        turned = _of_weights(weight.permute(2, 3, 0, 1).flip(0, 1)).to(grad.dtype)  # (16, O, C)
        x_grad = _convolve(grad, turned)
        # Tiles of x are made again: kept, they would take four times the memory of x.
        products = _of_pixels(grad).mT @ _of_tiles(x)  # (16, O, C)
        return x_grad, _to_weights(products).permute(2, 3, 0, 1).to(weight.dtype)


# --- The turns along one axis, each by its matrix; twice they turn a grid ---

_Grid = Sequence[Sequence[Tensor]]


def _turn(matrix: Callable[..., Sequence[Tensor]], grid: _Grid) -> _Grid:
    """Columns, then rows."""
    columns = [matrix(*column) for column in zip(*grid)]
    return [matrix(*row) for row in zip(*columns)]


def _tile_matrix(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Sequence[Tensor]:
    return a - c, b + c, c - b, b - d


def _weight_matrix(a: Tensor, b: Tensor, c: Tensor) -> Sequence[Tensor]:
    return a, (a + b + c) * 0.5, (a - b + c) * 0.5, c


def _pixel_matrix(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Sequence[Tensor]:
    return a + b + c, b - c - d


def _transposed_weight_matrix(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Sequence[Tensor]:
    return a + (b + c) * 0.5, (b - c) * 0.5, (b + c) * 0.5 + d


def _transposed_pixel_matrix(a: Tensor, b: Tensor) -> Sequence[Tensor]:
    return a, a + b, a - b, -b


# --- What they turn ---


def _convolve(x: Tensor, weights: Tensor) -> Tensor:
    """(B, I, H, W), (16, I, J) → (B, J, H, W)."""
    return _to_pixels(_of_tiles(x) @ weights, x.shape)


def _of_tiles(x: Tensor) -> Tensor:
    """(B, C, H, W) → (16, B · tiles, C), a tile for each 2x2 pixels."""
    down, across = _tiles(x.shape)
    padded = torch.ops.facestream.pad_map(x.permute(0, 2, 3, 1), 2 * down + 2, 2 * across + 2)
    every = [
        [padded[:, i : i + 2 * down : 2, j : j + 2 * across : 2] for j in range(4)]
        for i in range(4)
    ]
    return _flat(_turn(_tile_matrix, every))


def _of_weights(weights: Tensor) -> Tensor:
    """(3, 3, O, C) → (16, O, C)."""
    return _flat(_turn(_weight_matrix, [list(row) for row in weights]))


def _to_weights(products: Tensor) -> Tensor:
    """(16, O, C), the gradient of what `_of_weights` gives, → (3, 3, O, C)."""
    grid = _turn(_transposed_weight_matrix, _grid(products))
    return torch.stack([torch.stack(tuple(row)) for row in grid])


def _to_pixels(products: Tensor, shape: torch.Size) -> Tensor:
    """(16, B · tiles, O) → (B, O, H, W)."""
    batch, (down, across) = shape[0], _tiles(shape)
    grid = _turn(_pixel_matrix, _grid(products.view(16, batch, down, across, -1)))
    pairs = [torch.stack(tuple(row), 3) for row in grid]  # (B, down, across, 2, O)
    pixels = torch.stack(pairs, 2).reshape(batch, 2 * down, 2 * across, -1)
    return pixels[:, : shape[2], : shape[3]].to(products.dtype).permute(0, 3, 1, 2)


def _of_pixels(grad: Tensor) -> Tensor:
    """(B, O, H, W), the gradient of what `_to_pixels` gives, → (16, B · tiles, O)."""
    down, across = _tiles(grad.shape)
    missing = (0, 2 * across - grad.shape[3], 0, 2 * down - grad.shape[2])
    even = nn.functional.pad(grad.permute(0, 2, 3, 1), (0, 0, *missing))
    return _flat(
        _turn(_transposed_pixel_matrix, [[even[:, i::2, j::2] for j in (0, 1)] for i in (0, 1)])
    )


def _tiles(shape: torch.Size) -> tuple[int, int]:
    """Down and across, of a map (B, C, H, W)."""
    return -(-shape[2] // 2), -(-shape[3] // 2)


def _grid(products: Tensor) -> _Grid:
    """Sixteen as four by four, in float32 at least."""
    wide = products.to(torch.promote_types(products.dtype, torch.float32))
    return [list(row) for row in wide.unflatten(0, (4, 4))]


def _flat(grid: _Grid) -> Tensor:
    """(16, N, channels) of sixteen (..., channels)."""
    return torch.stack([part.reshape(-1, part.shape[-1]) for row in grid for part in row])


# --- As an operator of torch: a compiler that looked into it would pad wherever a number is read,
# --- sixteen times, and one number at a time ---


def _pad_map(x: Tensor, height: int, width: int) -> Tensor:
    """(B, H, W, C) → (B, height, width, C): a zero before, and zeros behind."""
    padded = x.new_zeros(x.shape[0], height, width, x.shape[3])
    padded[:, 1 : x.shape[1] + 1, 1 : x.shape[2] + 1].copy_(x)
    return padded


def _fake_pad_map(x: Tensor, height: int, width: int) -> Tensor:
    return x.new_empty(x.shape[0], height, width, x.shape[3])


_LIBRARY = torch.library.Library("facestream", "FRAGMENT")
_LIBRARY.define("pad_map(Tensor x, SymInt height, SymInt width) -> Tensor")
_LIBRARY.impl("pad_map", _pad_map, "CompositeExplicitAutograd")
torch.library.register_fake("facestream::pad_map", _fake_pad_map, lib=_LIBRARY)
