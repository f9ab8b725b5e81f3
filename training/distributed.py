"""Ranks and devices: who takes part in a run, and what they must agree on before it starts."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from facestream import UserError
from training.faults.store import serve_store
from training.launch import read_place

T = TypeVar("T")
_NAMED = 8  # ranks that a line names


@dataclass(frozen=True)
class World:
    """This process among all, and the device it computes on."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def join_world(device: str = "auto", *, init_method: str | None = None) -> World:
    """Join the ranks torchrun started, or be the only one; NCCL for GPUs, gloo for CPUs.

    Ranks meet where torchrun's environment says, unless `init_method` names another place.

    Raises UserError when a GPU is asked for and there is none for this rank, and LaunchError, a
    subclass of it, where the environment does not say this rank's place.
    """
    available = torch.cuda.device_count()
    place = read_place(
        os.environ, gpus=0 if device == "cpu" else available, address=init_method is None
    )
    local_rank = place.local_rank
    if device != "cpu" and local_rank >= available and (available or device == "cuda"):
        raise UserError(
            f"run.device={device}, but local rank {local_rank} finds {available} GPUs: start at "
            "most that many processes a machine, or set run.device=cpu"
        )
    if device != "cpu" and available:
        chosen = torch.device("cuda", local_rank)
        torch.cuda.set_device(chosen)
        backend = "cpu:gloo,cuda:nccl"
    else:
        chosen, backend = torch.device("cpu"), "gloo"
    if "RANK" in os.environ:
        rank, world_size = place.rank, place.world_size
        store, _, _ = next(dist.rendezvous(init_method or "env://", rank, world_size))
        if os.environ.get("GROUP_WORLD_SIZE", "1") == "1":
            # torchrun gives ranks that start again the store of the dead, full of their addresses.
            # Over several machines the count may differ, as each counts its own ranks' deaths:
            # what follows copes with one such address.
            store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
        own = serve_store(store, rank=rank, world_size=world_size)
        dist.init_process_group(backend, store=own, rank=rank, world_size=world_size)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    return World(
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
        local_rank=local_rank,
        local_world_size=place.local_world_size,
        device=chosen,
    )


def leave_world() -> None:
    """End the process group that `join_world` or another began, and those made of it."""
    # In torch 2.6 a group that ends waits for its threads with Python's lock held, and a thread
    # that frees a tensor needs that lock. A backend that is referenced here ends after its group,
    # without the lock.
    cpu, groups = torch.device("cpu"), dist.distributed_c10d._world.pg_map
    backends = [group._get_backend(cpu) for group in groups if cpu in group._device_types]
    dist.destroy_process_group()
    backends.clear()


@contextmanager
def joined_world(device: str = "auto", *, alone: str = "") -> Iterator[World]:
    """Around what is done between `join_world` and `leave_world`; raises what they do.

    Args:
        alone: the name of a command that works in one process: UserError where there are several.
    """
    world = join_world(device)
    try:
        if alone and world.world_size > 1:
            raise UserError(f"{alone} works in one process: start it without torchrun")
        yield world
    finally:
        leave_world()


def of_all_ranks(value: T) -> list[T]:
    """What every rank has, by rank (all_gather); call it on every rank."""
    values: list[T] = [value] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def from_main(value: T) -> T:
    """What rank 0 has, broadcast to all: folders on a network may look different elsewhere."""
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def together(work: Callable[[], T]) -> T:
    """Do `work` on every rank; where it raises on any, every rank raises, so that none waits.

    A rank that succeeded raises the first other rank's error.
    """
    result, error = None, None
    try:
        result = work()
    except Exception as caught:
        error = caught
        try:
            pickle.dumps(caught)
        except (pickle.PicklingError, TypeError, AttributeError):
            error = RuntimeError(f"{type(caught).__name__}: {caught}")
    for failure in (error, *of_all_ranks(error)):
        if failure is not None:
            raise failure
    return cast(T, result)


def require_agreement(facts: dict[str, Any]) -> None:
    """Raise UserError, on every rank, naming the facts that differ and who has which value."""
    everyone = of_all_ranks(facts)
    differences = []
    for name in facts:
        having: dict[str, list[int]] = {}
        for rank, theirs in enumerate(everyone):
            having.setdefault(repr(theirs.get(name)), []).append(rank)
        if len(having) > 1:
            listed = ", ".join(f"{_ranks(ranks)} {value}" for value, ranks in having.items())
            differences.append(f"{name} ({listed})")
    if differences:
        raise UserError(
            f"the ranks disagree on {'; '.join(differences)}. Start every rank from the same "
            "software, files and configuration"
        )


def _ranks(ranks: list[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]} has"
    more = f" and {len(ranks) - _NAMED} more" if len(ranks) > _NAMED else ""
    return f"ranks {', '.join(map(str, ranks[:_NAMED]))}{more} have"
