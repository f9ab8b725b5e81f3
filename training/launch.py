"""What a launcher says in the environment of the process that it starts: its place among all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from facestream import UserError

TORCHRUN = (
    "torchrun --standalone --nproc_per_node=RANKS train_dist.py CONFIG on one machine; on several, "
    "on each of them, torchrun --nnodes=MACHINES --nproc_per_node=RANKS --rdzv_backend=c10d "
    "--rdzv_endpoint=FIRST_MACHINE:29500 train_dist.py CONFIG"
)
# Launchers that start copies and say nothing that torch understands: name, the variable that only
# a started process has, and those with the number of copies, of which the first one set counts.
_OTHERS = (
    ("Slurm", "SLURM_PROCID", ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")),
    ("Open MPI", "OMPI_COMM_WORLD_RANK", ("OMPI_COMM_WORLD_SIZE",)),
    ("MPI", "PMI_RANK", ("PMI_SIZE",)),
)


class LaunchError(UserError):
    """A process whose place among all is not given, or makes no sense."""


@dataclass(frozen=True)
class Place:
    """Of this process among all of the run, and among those of this machine."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int


def read_place(environment: Mapping[str, str], *, gpus: int, address: bool) -> Place:
    """This process's place as torchrun tells it; without RANK it is the only one.

    Args:
        gpus: that this process could use.
        address: whether the environment must say where ranks meet.

    Raises:
        LaunchError: where the process is one of several that do not know of each other, or where
            what it was given is incomplete or contradicts itself.
    """
    if "RANK" not in environment:
        _refuse_copies(environment)
        if _number(environment, "WORLD_SIZE", 1) > 1:
            raise _incomplete("RANK", f"WORLD_SIZE={environment['WORLD_SIZE']}")
        return Place(0, 1, local_rank=_number(environment, "LOCAL_RANK", 0), local_world_size=1)
    if "WORLD_SIZE" not in environment:
        raise _incomplete("WORLD_SIZE", f"RANK={environment['RANK']}")
    for key in ("MASTER_ADDR", "MASTER_PORT") if address else ():
        if not environment.get(key):
            raise _incomplete(key, "RANK and WORLD_SIZE")
    place = Place(
        rank=_number(environment, "RANK", 0),
        world_size=_number(environment, "WORLD_SIZE", 1),
        local_rank=_number(environment, "LOCAL_RANK", 0),
        local_world_size=_number(environment, "LOCAL_WORLD_SIZE", 1),
    )
    if address:
        _number(environment, "MASTER_PORT", 0)
    for key, size in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE")):
        if size in environment and _number(environment, key, 0) >= _number(environment, size, 1):
            raise LaunchError(
                f"{key}={environment[key]} and {size}={environment[size]}: ranks count from 0, so "
                f"expected less than {size}. Start it with {TORCHRUN}"
            )
    # A machine with one GPU, or none, has no use for it.
    if place.world_size > 1 and gpus > 1 and "LOCAL_RANK" not in environment:
        raise _incomplete("LOCAL_RANK", f"WORLD_SIZE={place.world_size} and {gpus} GPUs are here")
    return place


def _refuse_copies(environment: Mapping[str, str]) -> None:
    for launcher, started, sizes in _OTHERS:
        size = next((key for key in sizes if key in environment), None)
        if started not in environment or size is None:
            continue
        count = _number(environment, size, 1)
        if count > 1:
            alone = ", or srun --ntasks=1 for this process alone" if launcher == "Slurm" else ""
            raise LaunchError(
                f"{launcher} has {count} tasks here ({size}={count}), each of which would train by "
                f"itself, as RANK is not set. Let it start one task a machine{alone}, and let that "
                f"task start the ranks: {TORCHRUN}"
            )


def _number(environment: Mapping[str, str], key: str, default: int) -> int:
    text = environment.get(key, str(default))
    if not text.isdecimal():
        raise LaunchError(f"{key}={text!r}: expected a number. Start it with {TORCHRUN}")
    return int(text)


def _incomplete(missing: str, given: str) -> LaunchError:
    return LaunchError(
        f"{missing} is not set, but {given}: a launcher sets all or none of RANK, WORLD_SIZE, "
        f"LOCAL_RANK, MASTER_ADDR and MASTER_PORT. Start it with {TORCHRUN}; or unset them, for "
        "one process alone"
    )
