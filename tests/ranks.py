"""Run a function on several ranks, as torchrun would start them.

They are forked from a server that has imported what takes seconds.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from training.distributed import World, join_world, leave_world

FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["training.loop", "torch._inductor", "heads.triton_softmax"])


def run_ranks(function: Callable[..., Any], *args: Any, world_size: int, folder: Path) -> list[Any]:
    """`function(world, *args)` on each rank of a gloo world; what they return, by rank."""
    store = folder / f"store_{function.__name__}_{world_size}"
    store.unlink(missing_ok=True)
    start(_rank, (world_size, str(store), os.environ.copy(), function, args), nprocs=world_size)
    return [pickle.loads(Path(f"{store}.{rank}").read_bytes()) for rank in range(world_size)]


def start(function: Callable[..., None], args: tuple[Any, ...], **options: Any) -> Any:
    """As torch.multiprocessing.spawn, forked from the server."""
    return mp.start_processes(function, args, start_method="forkserver", **options)


def _rank(
    rank: int,
    world_size: int,
    store: str,
    environment: Mapping[str, str],
    function: Callable[..., Any],
    args: Any,
) -> None:
    torch.set_num_threads(1)
    os.environ |= environment | {  # the server's own is as old as it is
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
