"""A head's centers and their momentum from a checkpoint, whatever dtype either keeps them in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.device_mesh import DeviceMesh

from heads import PartialFC
from heads.passes.workspace import Workspace
from heads.rows.buffers import CENTERS, VELOCITY, kept_rows, stored_rows
from heads.rows.stored import Stored, dtype_name, read_rows, write_rows
from heads.sampling import Shard
from training.saving.metadata import load_state, read_metadata
from training.saving.names import HEAD
from training.saving.state import rank_mesh, share_rows

_WORDS = {CENTERS: "centers", VELOCITY: "momentum of the centers"}
_PIECE = 1 << 14  # rows that are converted together


def kept_otherwise(saved: Mapping[str, Any], head: PartialFC) -> list[tuple[str, str]]:
    """CENTERS, VELOCITY or both: those that a head has, in another dtype than the checkpoint's.

    Args:
        saved: the metadata of its tensors, by name.
    """
    found = []
    for names in (CENTERS, VELOCITY):
        rows, entry = stored_rows(kept_rows(head), names), saved.get(f"{HEAD}.{names[0]}")
        dtype = entry.properties.dtype if isinstance(entry, TensorStorageMetadata) else None
        if rows is not None and rows.values.dtype != dtype:
            found.append(names)
    return found


def convert(path: Path, head: PartialFC, names: tuple[str, str]) -> str:
    """Fill a head's rows from a checkpoint that keeps them in another dtype, or lacks them.

    They are rounded to the nearest. Call it on every rank; what was done is returned in words.
    """
    rows, mesh = stored_rows(kept_rows(head), names), rank_mesh("cpu")
    assert rows is not None
    what, now = _WORDS[names], dtype_name(rows.values.dtype)
    saved = load_rows(path, names, head.shard, mesh)
    if saved is None:
        rows.values.zero_()
        return f"{what}: none in {path}, it starts at zero in {now}"
    workspace = Workspace(torch.device("cpu"))
    for start in range(0, head.shard.num_local, _PIECE):
        piece = slice(start, min(start + _PIECE, head.shard.num_local))
        read = read_rows(saved, piece, torch.float32, workspace=workspace, name="converted")
        new = read.to(rows.values.device)
        write_rows(rows, piece, new, None, workspace=Workspace(new.device))
    return f"{what}: from {dtype_name(saved.values.dtype)} in {path} to {now}"


def load_rows(path: Path, names: tuple[str, str], shard: Shard, mesh: DeviceMesh) -> Stored | None:
    """A rank's rows of CENTERS or VELOCITY as a checkpoint keeps them, on the CPU, or None.

    Call it on every rank of `mesh`, which is of CPUs.

    Args:
        shard: of all rows of the checkpoint, this rank's.
    """
    saved = read_metadata(path).state_dict_metadata
    own = {
        name: torch.empty(shard.num_local, entry.size[1], dtype=entry.properties.dtype)
        for name in names
        if isinstance(entry := saved.get(f"{HEAD}.{name}"), TensorStorageMetadata)
    }
    if not own:
        return None
    spread = {name: share_rows(rows, shard.num_classes, mesh) for name, rows in own.items()}
    load_state({HEAD: spread}, path)
    return Stored(own[names[0]], own.get(names[1]))
