"""The store that ranks met at, for words between threads that no collective may hold up."""

from __future__ import annotations

import itertools

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

_numbers = itertools.count()


def open_store() -> dist.Store:
    """A key space of its own, the same one for all ranks: call it on every rank, in one order."""
    store = _get_default_store()
    # From torch 2.8 on over a connection of its own too: a thread that waits for a key holds a
    # shared one, as where the main thread begins a process group.
    if hasattr(store, "clone"):
        store = store.clone()
    return dist.PrefixStore(f"facestream_{next(_numbers)}", store)
