"""Memory that will not do or has run out: what was predicted, asked for and there, what to change.

torch, numpy and the system each say it in their own way, and none says which setting took it. Here
all of them become one error, whether it is a run, a dry run or a tool.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from facestream import UserError
from training.config import Config
from training.distributed import World, of_all_ranks, together
from training.planning.machine import available_memory
from training.planning.memory import Prediction
from training.planning.row_places import lack_on_disk

_SIGNS = re.compile(
    r"out of memory|(can't|cannot|unable to) allocate|not enough memory|bad_?alloc|alloc_cpu"
    r"|(CUDNN|CUBLAS)_STATUS_ALLOC_FAILED",
    re.IGNORECASE,
)
_ASKED = re.compile(r"(?:tried to|unable to) allocate ([\d.]+ ?[KMGT]?i?B(?:ytes)?\b)", re.I)
_SHARED = re.compile(r"/dev/shm|shared memory|shm_open", re.IGNORECASE)

# What makes which part of a prediction smaller, the most useful first.
_WAYS = {
    "backbone": ("model.name",),
    "activations": ("step.micro_batches", "model.checkpointing", "data.global_batch"),
    "centers": ("ranks", "head.place"),
    "momentum": ("ranks", "head.place"),
    "fetched": ("head.prefetch", "sample"),
    "neighbors": ("ranks",),
    "transients": ("sample", "data.global_batch"),
    "loader": ("data.threads", "data.global_batch"),
    "checkpoint": ("ranks",),
    "verification": ("eval.batch_size", "eval.sets"),
}


class OutOfMemoryError(UserError):
    """A run that does not fit: what was predicted by part, what there is, what to change."""


def require_memory(config: Config, world: World, prediction: Prediction) -> None:
    """Raise OutOfMemoryError, on every rank, where any is predicted to take more than it may."""
    available = least_available(world)
    if max(of_all_ranks(prediction.total)) > available:
        raise OutOfMemoryError(does_not_fit(config, prediction, available=available))
    if prediction.host:
        host = replace(world, device=torch.device("cpu"))
        available = least_available(host)
        if prediction.host > available:
            raise OutOfMemoryError(
                f"head.place={config.head.place}: {prediction.host / 1e6:,.0f} MB of the host's "
                f"memory predicted for each rank, {available / 1e6:,.0f} MB available. Try "
                "head.place=disk, fewer head.prefetch, or more machines, which share the centers"
            )
    if prediction.disk:
        lack = together(lambda: lack_on_disk(config, prediction.disk * world.local_world_size))
        if lacks := [lack for lack in of_all_ranks(lack) if lack]:
            raise OutOfMemoryError(lacks[0])


def does_not_fit(config: Config, prediction: Prediction, *, available: int) -> str:
    """What is predicted to take more than there is, and what would take less."""
    return (
        f"does not fit: {prediction} predicted, {available / 1e6:,.0f} MB available. "
        f"{less_memory(config, prediction)}"
    )


@contextmanager
def memory_explained(
    config: Config, world: World, prediction: Prediction | None = None
) -> Iterator[None]:
    """Around what takes memory: where it runs out, OutOfMemoryError in place of what was raised.

    Args:
        prediction: what was said to be needed, where that is known.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_shortage(error):
            raise
        raise OutOfMemoryError(_explain(error, config, world, prediction)) from error


def is_shortage(error: BaseException) -> bool:
    """Whether memory has run out: a device's, the host's, or what processes share."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if isinstance(error, OSError):
        in_memory = error.errno == errno.ENOSPC and _SHARED.search(str(error))
        return error.errno == errno.ENOMEM or bool(in_memory)
    if not isinstance(error, RuntimeError):
        return False
    text = str(error)
    return bool(_SIGNS.search(text) or (_SHARED.search(text) and "No space left" in text))


def asked_for(error: BaseException) -> str:
    """How much could not be had, as far as the error tells."""
    found = _ASKED.search(" ".join(str(error).split()))
    if found is None:
        return "some more"
    number, unit = re.fullmatch(r"([\d.]+) ?(\w+)", found[1]).groups()
    return f"{float(number) / 1e6:,.1f} MB" if unit.lower() in ("b", "bytes") else found[1]


def less_memory(config: Config, prediction: Prediction | None = None) -> str:
    """What makes a run smaller, with the present values; the settings of its largest part first."""
    head = config.head
    sample = "head.sample_count" if head.sample_count else "head.sample_rate"
    ways = {
        "step.micro_batches": f"more step.micro_batches={config.step.micro_batches}",
        "data.global_batch": f"a smaller data.global_batch={config.data.global_batch}",
        "sample": f"a smaller {sample}={head.sample_count or head.sample_rate}",
        "eval.batch_size": f"a smaller eval.batch_size={config.eval.batch_size}",
        "eval.sets": "fewer or smaller eval.sets",
        "data.threads": f"fewer data.threads={config.data.threads}",
        "model.name": f"a smaller model.name={config.model.name}",
        "model.checkpointing": "model.checkpointing=true",
        "head.place": f"another head.place={head.place}, such as disk",
        "head.prefetch": f"a smaller head.prefetch={head.prefetch}",
        "ranks": "more ranks, which share the centers",
    }
    parts = prediction.parts if prediction else {}
    ranked = sorted(parts, key=lambda name: parts[name], reverse=True)
    first = dict.fromkeys(way for name in ranked for way in _WAYS.get(name, ()))
    usual = ("data.global_batch", "step.micro_batches", "sample", "ranks")
    chosen = list(dict.fromkeys([*list(first)[:3], *usual]))
    if head.sample_rate == 0:  # the smallest there is
        chosen.remove("sample")
    if head.place == "disk" and "head.place" in chosen:
        chosen.remove("head.place")
    model, stages = config.model, config.architecture.family.stages
    if "model.checkpointing" in chosen and (model.checkpointing or model.compile or not stages):
        chosen.remove("model.checkpointing")
    return f"Try {', '.join(ways[way] for way in chosen[:-1])}, or {ways[chosen[-1]]}"


def least_available(world: World) -> int:
    """Bytes that a rank may take in all, of that with the fewest; call it on every rank."""
    own = available_memory(world.device, local_world_size=world.local_world_size)
    return min(of_all_ranks(own))


def _explain(
    error: BaseException, config: Config, world: World, prediction: Prediction | None
) -> str:
    text = " ".join(str(error).split())
    if _SHARED.search(text):
        return (
            f"rank {world.rank} finds no room in the memory that processes share ({text[:200]}). "
            "Enlarge /dev/shm: docker run --shm-size=8g, or a larger emptyDir of medium Memory"
        )
    kind = "the host's memory" if world.device.type == "cpu" else f"the memory of {world.device}"
    if world.device.type != "cpu" and not isinstance(error, torch.OutOfMemoryError):
        kind = "the host's memory, or the device's"
    left = available_memory(world.device, local_world_size=world.local_world_size)
    return " ".join(
        [
            f"rank {world.rank} has used up {kind}:",
            f"asked for {asked_for(error)},",
            f"of {left / 1e6:,.0f} MB that it may take in all.",
            *([f"Predicted were {prediction}."] if prediction else []),
            less_memory(config, prediction),
        ]
    )
