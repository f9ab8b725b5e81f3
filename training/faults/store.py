"""The ranks' store: rank 0 serves it, and threads that no collective may hold up talk over it."""

from __future__ import annotations

import itertools
import os
import socket
import time
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

_WAIT = timedelta(minutes=5)  # for ranks that are still to come, as torch waits elsewhere
_TRY = timedelta(seconds=5)  # at one address, which may be that of a rank that is dead
_KEY = "the ranks' store"

_numbers = itertools.count()


def serve_store(meeting: dist.Store, *, rank: int, world_size: int) -> dist.Store:
    """A store that rank 0 serves: it is there as long as the ranks are. Call it on every rank.

    The one where ranks meet is mostly torchrun's. It ends when torchrun is killed, while the ranks
    must still find the step that they all stop after.

    Args:
        meeting: where rank 0 says its address; keep it until all ranks have come.

    Raises:
        RuntimeError: torch.distributed.DistError, when rank 0 does not come in time.
    """
    if rank == 0:
        served = dist.TCPStore("localhost", 0, world_size, is_master=True, wait_for_workers=False)
        meeting.set(_KEY, f"{_own_address()} {served.port}")
        return served
    deadline = time.monotonic() + _WAIT.total_seconds()
    while True:
        address, port = meeting.get(_KEY).decode().split()
        try:
            store = dist.TCPStore(address, int(port), world_size, is_master=False, timeout=_TRY)
        except dist.DistError:
            # Ranks that start again may read where a dead rank 0 was, until the new one says more.
            if time.monotonic() > deadline:
                raise
        else:
            store.set_timeout(_WAIT)
            return store


def open_store() -> dist.Store:
    """A key space of its own, the same one for all ranks: call it on every rank, in one order."""
    store = _get_default_store()
    # From torch 2.8 on over a connection of its own too: a thread that waits for a key holds a
    # shared one, as where the main thread begins a process group.
    if hasattr(store, "clone"):
        store = store.clone()
    return dist.PrefixStore(f"facestream_{next(_numbers)}", store)


def _own_address() -> str:
    """Where other ranks reach this machine, by a way that they are known to have."""
    alone = os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]
    if alone or "MASTER_ADDR" not in os.environ:
        return "localhost"
    address = os.environ["MASTER_ADDR"]
    with socket.create_connection((address, int(os.environ["MASTER_PORT"]))) as connection:
        here, there = connection.getsockname()[0], connection.getpeername()[0]
    return address if here == there else here
