"""A convolution that BatchNorm was folded into from the front, right up to its zero padding."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn


class ShiftedConv2d(nn.Conv2d):
    """A 3x3 convolution, stride 1, zero padding 1, of x · scale + shift, both a number a channel.

    The scale is in the weights. What the shift adds to the output is a bias inside of the map; on
    its border, where some of the weights meet the padding, their part of the bias is taken off.

    Buffers, for O output channels, all zero until they are set:
        rows, columns: (2, O, 1), what to add to the first and the last row or column.
        corners: (2, 2, O), what is then missing where they cross, by row and column.
    """

    rows: Tensor
    columns: Tensor
    corners: Tensor

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=3, padding=1)
        self.register_buffer("rows", torch.zeros(2, out_channels, 1))
        self.register_buffer("columns", torch.zeros(2, out_channels, 1))
        self.register_buffer("corners", torch.zeros(2, 2, out_channels))

    @classmethod
    def after(cls, norm: nn.Module, layer: nn.Module) -> ShiftedConv2d:
        """What `layer`, such a convolution, makes of the output of `norm`, a BatchNorm in eval."""
        norm, layer = cast(nn.BatchNorm2d, norm), cast(nn.Conv2d, layer)
        form = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups)
        assert form == ((3, 3), (1, 1), (1, 1), (1, 1), 1)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        made = cls(layer.in_channels, layer.out_channels)
        with torch.no_grad():
            scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
            shift = norm.bias - norm.running_mean * scale
            # What each of the weights adds to an output pixel whose input there is the shift.
            added = torch.einsum("oiyx,i->yxo", layer.weight, shift)  # (3, 3, O)
            bias = added.sum((0, 1)) if layer.bias is None else added.sum((0, 1)) + layer.bias
            made.weight = nn.Parameter(layer.weight * scale[:, None, None])
            made.bias = nn.Parameter(bias)
            made.rows = -added[::2].sum(1)[..., None]
            made.columns = -added[:, ::2].sum(0)[..., None]
            made.corners = added[::2, ::2].contiguous()
        return made.eval()

    def forward(self, input: Tensor) -> Tensor:
        output = super().forward(input)
        # In its dtype, as the bias is under autocast.
        rows, columns, corners = (
            part.to(output.dtype) for part in (self.rows, self.columns, self.corners)
        )
        for i in (0, -1):
            output[:, :, i] += rows[i]
            output[:, :, :, i] += columns[i]
            for j in (0, -1):
                output[:, :, i, j] += corners[i, j]
        return output
