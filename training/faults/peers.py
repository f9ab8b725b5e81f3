"""Which ranks have died: a collective that fails because of them does not say so."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch.distributed as dist

from training.faults.memory_killer import count_kills

_WAIT = 5.0  # seconds in which a process that has closed its connections is over


class _Process(NamedTuple):
    """A rank's, as other processes of its machine see it."""

    machine: str
    pid: int


class Peers:
    """The processes of all ranks. Build it on every rank, once the process group stands."""

    def __init__(self) -> None:
        self._mine = _Process(_machine(), os.getpid())
        self._all = [self._mine] * dist.get_world_size()
        dist.all_gather_object(self._all, self._mine)
        self._kills = count_kills()

    def dead(self) -> list[int]:
        """The ranks of this machine whose processes are over."""
        return [rank for rank in range(len(self._all)) if self.is_dead(rank)]

    def is_dead(self, rank: int) -> bool:
        """Whether a rank is of this machine, and its process over."""
        machine, pid = self._all[rank]
        return machine == self._mine.machine and not _lives(pid)

    def explain(self, error: BaseException) -> str | None:
        """Whose death is behind an error, as far as this machine shows it; None where none is.

        Waits a few seconds for a process to be over.
        """
        if not any(_is_of_connection(cause) for cause in _causes(error)):
            return None
        deadline = time.monotonic() + _WAIT
        while not (dead := self.dead()) and time.monotonic() < deadline:
            time.sleep(0.05)
        if dead:
            ranks = ", ".join(map(str, dead))
            known, kills = self._kills, count_kills()
            if known is not None and kills is not None and kills > known:
                return f"rank {ranks} is gone, and the machine's memory killer has ended a process"
            return f"rank {ranks} is gone: it ended by an error of its own, or was killed"
        if any(process.machine != self._mine.machine for process in self._all):
            return "a rank on another machine is gone, or the network between them"
        return None


def _machine() -> str:
    """What processes that can see each other have in common."""
    namespace = Path("/proc/self/ns/pid")
    return f"{os.uname().nodename} {os.readlink(namespace) if namespace.is_symlink() else ''}"


def _lives(pid: int) -> bool:
    """Whether a process runs; one that is only waited for does not."""
    try:
        os.kill(pid, 0)
        status = Path(f"/proc/{pid}/stat")
        # The state follows the name, which stands in brackets and may hold any letter.
        return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_of_connection(error: BaseException) -> bool:
    """Whether torch lost a rank; for gloo it has no class of errors."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and ("gloo" in str(error) or "NCCL" in str(error))
    )
