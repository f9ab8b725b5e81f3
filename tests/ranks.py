"""Run a function on several ranks, as torchrun would start them.

They are forked from a server that has imported what takes seconds.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
from collections.abc import Callable, Mapping
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from training.distributed import World, join_world, leave_world

FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(
    [
        *("train_dist", "sklearn.metrics", "torch._inductor", "heads.passes.kernels.softmax"),
        *("training.reporting.curves", "matplotlib.font_manager"),
    ]
)


def run_ranks(function: Callable[..., Any], *args: Any, world_size: int, folder: Path) -> list[Any]:
    """`function(world, *args)` on each rank of a gloo world; what they return, by rank."""
    store = folder / f"store_{function.__name__}_{world_size}"
    store.unlink(missing_ok=True)
    start(_rank, (world_size, str(store), function, args), nprocs=world_size)
    return [pickle.loads(Path(f"{store}.{rank}").read_bytes()) for rank in range(world_size)]


def start(function: Callable[..., None], args: tuple[Any, ...], **options: Any) -> Any:
    """As torch.multiprocessing.spawn, but forked from the server."""
    process = (function, args, os.environ.copy(), _Output())
    return mp.start_processes(_call, process, start_method="forkserver", **options)


class _Output:
    """Standard output and error of this process: the server has those of when it began."""

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Any, ...]]:
        return _write_to, (DupFd(1), DupFd(2))


def _write_to(*descriptors: Any) -> None:
    for number, descriptor in enumerate(descriptors, start=1):
        os.dup2(descriptor.detach(), number)


def _call(
    rank: int,
    function: Callable[..., None],
    args: tuple[Any, ...],
    environment: Mapping[str, str],
    _: None,
) -> None:
    os.environ |= environment  # the server has that of when it began, too
    function(rank, *args)


def _rank(rank: int, world_size: int, store: str, function: Callable[..., Any], args: Any) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(world_size),
    }
    world: World = join_world("cpu", init_method=f"file://{store}")
    try:
        Path(f"{store}.{rank}").write_bytes(pickle.dumps(function(world, *args)))
    finally:
        leave_world()
