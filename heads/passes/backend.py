"""Which of the two implementations of the passes over the classes runs: PyTorch or Triton."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from facestream import UserError
from heads.passes.cosine_softmax import ChunkedSoftmax
from heads.passes.row_update import update_rows

BACKENDS = ("auto", "torch", "triton")


@dataclass(frozen=True)
class Backend:
    """softmax: ChunkedSoftmax or what has its face. update_rows: as in heads.passes.row_update."""

    name: str
    reason: str
    softmax: Callable[..., Any]
    update_rows: Callable[..., None]


def choose_backend(
    requested: str,
    *,
    device: torch.device,
    embedding_dim: int,
    compute_dtype: torch.dtype,
    obstacle: str | None = None,
) -> Backend:
    """Triton where it runs, PyTorch elsewhere, or the one that is asked for.

    Args:
        obstacle: a known reason against Triton.

    Raises UserError for an unknown name, and for Triton where it cannot run, with the reason.
    """
    if requested not in BACKENDS:
        raise UserError(f"backend={requested!r}, expected one of {', '.join(BACKENDS)}")
    if requested == "torch":
        return Backend("torch", "asked for", ChunkedSoftmax, update_rows)
    from heads.passes.kernels import kernel_launch, softmax

    obstacle = obstacle or kernel_launch.available(device, embedding_dim, compute_dtype)
    if obstacle is None:
        return Backend("triton", "it can run here", softmax.TritonSoftmax, softmax.update_rows)
    if requested == "triton":
        raise UserError(f"backend='triton' cannot run here: {obstacle}; take 'auto' or 'torch'")
    return Backend("torch", obstacle, ChunkedSoftmax, update_rows)
