"""Memory that every step uses again, so that the system need not find fresh pages for it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class Workspace:
    """Uninitialized tensors by name, on one device; they stay where they are from step to step."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._held: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A contiguous tensor of `shape` over the memory of that name and dtype, which may grow."""
        count = math.prod(shape)
        held = self._held.get((name, dtype))
        if held is None or held.numel() < count:
            held = torch.empty(count, dtype=dtype, device=self._device)
            self._held[name, dtype] = held
        return held[:count].view(*shape)

    @property
    def nbytes(self) -> int:
        return sum(held.nbytes for held in self._held.values())
