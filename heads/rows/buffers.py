"""A head's centers and momentum as its buffers, which move and are saved with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from heads.rows.stored import NARROW, Stored, dtype_name

# A row a class.
CENTERS, VELOCITY = ("centers", "center_scales"), ("velocity", "velocity_scales")
ROWS = (*CENTERS, *VELOCITY)
_ARGUMENTS = {CENTERS: "centers_dtype", VELOCITY: "momentum_dtype"}  # of PartialFC


def register_rows(head: nn.Module, centers: Stored, velocity: Stored | None) -> None:
    """Make them buffers of these names; what there is not is None.

    `load_state_dict` then raises RuntimeError where rows are kept in another dtype: bits would be
    lost unsaid, and float8 means nothing without its scales.
    """
    for name, tensor in zip(ROWS, (*centers, *(velocity or (None, None)))):
        head.register_buffer(name, tensor)
    head.register_load_state_dict_pre_hook(_refuse_other_dtypes)


def kept_rows(head: nn.Module) -> dict[str, Tensor]:
    """Those that there are, as they are now."""
    return {name: head._buffers[name] for name in ROWS if head._buffers[name] is not None}


def stored_rows(rows: Mapping[str, Tensor], names: tuple[str, str]) -> Stored | None:
    """Those of CENTERS or VELOCITY."""
    values, scales = (rows.get(name) for name in names)
    return None if values is None else Stored(values, scales)


@contextmanager
def rows_kept(head: nn.Module, *, away: bool) -> Iterator[None]:
    """Inside, a head may move and be converted, and its rows lose nothing by it.

    Those in fewer bits than the arithmetic keep their dtype, and so do scales.

    Args:
        away: whether all rows stay where they are, as they are.
    """
    if away:
        rows = {name: head._buffers.pop(name) for name in ROWS}
        try:
            yield
        finally:
            others = head._buffers.copy()
            head._buffers.clear()
            head._buffers.update(rows | others)
        return
    kept = {
        name: tensor.dtype
        for name, tensor in kept_rows(head).items()
        if tensor.dtype in NARROW or name.endswith("scales")
    }
    yield
    for name, dtype in kept.items():
        setattr(head, name, getattr(head, name).to(dtype))


def _refuse_other_dtypes(head: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for names in (CENTERS, VELOCITY):
        rows, saved = stored_rows(kept_rows(head), names), state.get(prefix + names[0])
        if rows is None:
            for name in names:  # of a state with momentum, which is left out here
                state.pop(prefix + name, None)
        elif saved is not None and _loses_bits(saved.dtype, rows.values.dtype):
            there, here = dtype_name(saved.dtype), dtype_name(rows.values.dtype)
            raise RuntimeError(
                f"{names[0]} is {there} in this state and {here} in this head: build the head with "
                f"{_ARGUMENTS[names]}={there}, or put rows of {here} into the state, which "
                "heads.rows.stored reads and rounds"
            )


def _loses_bits(one: torch.dtype, other: torch.dtype) -> bool:
    return one != other and (one in NARROW or other in NARROW)
