"""A head's centers and momentum as its buffers, which move and are saved with it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from heads.rows.stored import NARROW, Stored

# A row a class.
CENTERS, VELOCITY = ("centers", "center_scales"), ("velocity", "velocity_scales")
ROWS = (*CENTERS, *VELOCITY)


def register_rows(head: nn.Module, centers: Stored, velocity: Stored | None) -> None:
    """Make them buffers of these names; what there is not is None."""
    for name, tensor in zip(ROWS, (*centers, *(velocity or (None, None)))):
        head.register_buffer(name, tensor)


def stored_rows(head: nn.Module, names: tuple[str, str]) -> Stored | None:
    """Those of CENTERS or VELOCITY."""
    values, scales = (getattr(head, name) for name in names)
    return None if values is None else Stored(values, scales)


def narrow_dtypes(head: nn.Module) -> dict[str, torch.dtype]:
    """Of the buffers that keep theirs whatever the arithmetic's is."""
    rows = {name: getattr(head, name) for name in ROWS}
    return {
        name: tensor.dtype
        for name, tensor in rows.items()
        if isinstance(tensor, Tensor) and (tensor.dtype in NARROW or name.endswith("scales"))
    }


def restore_dtypes(head: nn.Module, dtypes: dict[str, torch.dtype]) -> None:
    """After a conversion to the dtype of another arithmetic, in which nothing was lost."""
    for name, dtype in dtypes.items():
        setattr(head, name, getattr(head, name).to(dtype))
