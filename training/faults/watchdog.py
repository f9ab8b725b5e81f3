"""A watchdog for steps that never end: it names the rank, the step and the phase, and ends it."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from training.config import RunConfig
from training.distributed import World
from training.faults.store import open_store

HANG_EXIT_CODE = os.EX_TEMPFAIL  # torchrun --max-restarts goes on from the last checkpoint

_TICK = 5.0  # seconds between two looks, or a tenth of the limit if that is less
_PATIENCE = 60.0  # seconds for a store to answer, or for a disk or a console to take a report


class Beat(NamedTuple):
    """What a rank was last known to begin."""

    number: int  # of its beats: ranks do the same, so who has fewer is behind
    step: int
    phase: str
    since: float  # seconds, UTC
    paused: bool  # it may take as long as it likes

    def __str__(self) -> str:
        clock = time.strftime("%H:%M:%S", time.gmtime(self.since))
        return f"{self.phase} of step {self.step} since {clock} UTC"


class Watchdog:
    """Ends a process whose steps have come to rest, with exit code 75, saying where.

    What is known of all ranks and the stacks of all threads go to stderr and to hang_rank<r>.txt in
    `run.output`, where these can be written; the process ends in any case. Time in which it is
    stopped does not count, nor does that in which any rank is `paused`, for the others may have to
    wait for it.

    Args:
        config: `hang_minutes`; 0 watches nothing. Its folder `output` is where reports go.
        world: this rank; the process group must stand. Build it on every rank.
    """

    def __init__(self, config: RunConfig, world: World) -> None:
        self._minutes = config.hang_minutes
        self._tick = min(_TICK, self._minutes * 60 / 10)
        self._rank, self._world_size = world.rank, world.world_size
        self._path = Path(config.output) / f"hang_rank{world.rank}.txt"
        self._store = open_store()
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._asking: threading.Thread | None = None  # the store
        self._beat = Beat(0, 0, "start", time.time(), paused=False)
        self.on_hang: Callable[..., None] = lambda status, *, why, exit_code: None

    def beat(self, step: int, phase: str) -> None:
        """This rank begins a phase of a step, as all others do, sooner or later.

        Reads nothing from the device or the network.
        """
        self._begin(step, phase, paused=False)

    @contextmanager
    def paused(self, phase: str) -> Iterator[None]:
        """Around what may take long: verification, saving, a first step that is compiled."""
        step = self._beat.step
        self._begin(step, phase, paused=True)
        try:
            yield
        finally:
            self.beat(step, f"what follows {phase}")

    def __enter__(self) -> Watchdog:
        if self._minutes:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._leaving.set()
        if self._minutes:
            self._thread.join()

    def _begin(self, step: int, phase: str, *, paused: bool) -> None:
        self._beat = Beat(self._beat.number + 1, step, phase, time.time(), paused)

    def _watch(self) -> None:
        seen, silent = None, 0.0
        while not self._leaving.wait(self._tick):
            if self._beat is not seen:
                seen, silent = self._beat, 0.0
                self._tell(seen)
                continue
            # Ticks, not clocks: a process that was stopped and goes on gets its time again.
            silent += self._tick
            if silent < self._minutes * 60 or seen.paused:
                continue
            beats = self._hear()
            if any(beat.paused for beat in beats.values()):
                silent = 0.0
            else:
                self._end(beats)

    def _tell(self, beat: Beat) -> None:
        """Let the other ranks know."""
        self._ask(lambda: self._store.set(str(self._rank), json.dumps(beat)), patience=self._tick)

    def _hear(self) -> dict[int, Beat]:
        """The last beat of every rank that has sent one, and of this one."""
        beats: dict[int, Beat] = {}

        def read() -> None:
            for rank in range(self._world_size):
                if self._store.check([str(rank)]):
                    beats[rank] = Beat(*json.loads(self._store.get(str(rank))))

        self._ask(read, patience=_PATIENCE)
        return dict(beats) | {self._rank: self._beat}

    def _ask(self, work: Callable[[], None], *, patience: float) -> None:
        """Let the ranks' store be asked by a thread: a store that is frozen freezes that alone."""

        def ask() -> None:
            try:
                work()
            except RuntimeError as error:  # a run ends, and the rank that holds the store is first
                logging.debug("the ranks' store is closed: %s", error)

        if before := self._asking:
            before.join(patience)
            if before.is_alive():
                return
        asking = threading.Thread(target=ask, name="watchdog's question", daemon=True)
        asking.start()
        self._asking = asking  # only now: whoever else asks may join it
        asking.join(patience)

    def _end(self, beats: Mapping[int, Beat]) -> None:
        """Write down what is known and end the process, whatever that meets."""
        try:
            report = describe_hang(
                beats, rank=self._rank, world_size=self._world_size, minutes=self._minutes
            )
            report += f"\n{describe_stacks()}\n"
            # By threads: a disk that hangs and a console that nobody reads may keep them for good.
            writers = [
                threading.Thread(target=write, args=(report,), daemon=True)
                for write in (_show, self._write_down, self._part)
            ]
            for writer in writers:
                writer.start()
            for writer in writers:
                writer.join(_PATIENCE)
            time.sleep(2 * self._tick)  # others may read from the store that this process holds
        finally:
            os._exit(HANG_EXIT_CODE)

    def _part(self, report: str) -> None:
        why = report.partition("\n")[0]
        self.on_hang("failed", why=why, exit_code=HANG_EXIT_CODE)

    def _write_down(self, report: str) -> None:
        try:
            self._path.write_text(report)
        except OSError as error:
            _show(f"{self._path} was not written: {error}\n")


def _show(text: str) -> None:
    """On stderr, whatever became of sys.stderr."""
    try:
        os.write(2, text.encode(errors="backslashreplace"))
    except OSError as error:
        logging.error("stderr is broken: %s", error)


def describe_hang(beats: Mapping[int, Beat], *, rank: int, world_size: int, minutes: float) -> str:
    """What one rank knows of a hang, in lines; `beats` has its own at least."""
    fewest = min(beat.number for beat in beats.values())
    behind = [other for other in sorted(beats) if beats[other].number == fewest]
    lines = [
        f"rank {rank} hangs: in {beats[rank]}, which is more than run.hang_minutes={minutes:g}",
        f"furthest behind, so look at their stacks first: ranks {behind}. Last heard of:",
        *(f"  rank {other}: {beats.get(other, 'nothing')}" for other in range(world_size)),
        f"stacks of rank {rank}:",
    ]
    return "\n".join(lines)


def describe_stacks() -> str:
    """Where each thread of this process is, in lines; reads no files, whose disk may hang."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    lines = []
    for ident, top in sys._current_frames().items():
        lines.append(f"thread {names.get(ident, ident)} (most recent call first):")
        for frame, line in traceback.walk_stack(top):
            code = frame.f_code
            lines.append(f'  File "{code.co_filename}", line {line} in {code.co_name}')
    return "\n".join(lines)
