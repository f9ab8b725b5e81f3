"""A mode under which an operator that a CUDA graph could not hold raises, on any device."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_FORBIDDEN_TAGS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
_INDEXING = {
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put.default,
    torch.ops.aten.index_put_.default,
    torch.ops.aten._index_put_impl_.default,
}


class GraphUnsafeError(AssertionError):
    """An operator whose output shape depends on data, or that reads data on the host."""


class GraphSafety(TorchDispatchMode):
    """Refuses item, nonzero, unique, masked_select, where(x) and indexing by a boolean mask.

    Indexing by integers is let through: its shape is known beforehand, though its tag says not.
    """

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in _INDEXING:
            unsafe = _has_mask(args[1])
        else:
            unsafe = not _FORBIDDEN_TAGS.isdisjoint(func.tags)
        if unsafe:
            raise GraphUnsafeError(f"{func} cannot be captured in a CUDA graph")
        return func(*args, **(kwargs or {}))


def _has_mask(indices: Iterable[Tensor | None]) -> bool:
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)
