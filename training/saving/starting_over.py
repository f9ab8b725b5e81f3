"""What of a head starts over where a run goes on from a checkpoint that has it otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from heads.neighbors.table import ENTRIES
from training.saving.names import HEAD

# What belongs together, in words; the head begins without either.
_TOGETHER = {
    "the table of neighbors": ENTRIES,
    "what margin and extra terms learn": ("learned", "learned_velocity"),
}


def leave_out(saved: Mapping[str, Any], state: dict[str, Tensor], path: Path) -> list[str]:
    """Take out of a new head's state what a checkpoint lacks or has in another shape.

    Another head.neighbors or other head.extra_terms may be asked for in a run that goes on in a
    folder of its own. What was left out stays as the head begins; it is returned in words.

    Args:
        saved: the metadata of the checkpoint's tensors, by name.
    """
    lines = []
    for what, names in _TOGETHER.items():
        wanted = [name for name in names if name in state]
        if all(_shape(saved.get(f"{HEAD}.{name}")) == state[name].shape for name in wanted):
            continue
        for name in wanted:
            del state[name]
        lines.append(f"{what}: not as this run's settings have it in {path}, it starts over")
    return lines


def _shape(entry: Any) -> torch.Size | None:
    return entry.size if isinstance(entry, TensorStorageMetadata) else None
