"""Stops that lose nothing: signals and a time budget end a run on all ranks after the same step.

The first Ctrl-C, any SIGTERM and `run.max_hours` ask for a stop. A second Ctrl-C quits at once.
"""

from __future__ import annotations

import logging
import math
import os
import select
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import NoReturn

import torch.distributed as dist

from training.config import RunConfig
from training.distributed import World
from training.faults.store import open_store

NO_ANSWER_EXIT_CODE = os.EX_TEMPFAIL  # a restart may help, as after a hang

_POLL = 0.1  # seconds from what one rank asks to what all others know
_ANSWER = 10.0  # seconds in which every rank that lives has answered; torchrun kills after 30
_ECHO = 1.0  # seconds in which signals are one: a terminal and a launcher may both pass it on
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):
    """A run was asked to stop and is saved; the text is the reason."""


class Agreement:
    """How ranks that are not at the same step find the one that all stop after.

    A step named in advance may lie behind a rank already, as hosts run ahead of their GPUs, and a
    collective in every step costs time. So whoever wants a stop says so in a store. A thread of
    each rank sees it, even while its main thread waits in a collective: it lets no further step
    begin and writes down how many have begun. The largest of these numbers is where all stop.

    Args:
        store: the same for all ranks, and used for nothing else.
    """

    def __init__(self, store: dist.Store, *, rank: int, world_size: int) -> None:
        self._store, self._rank = store, rank
        self._keys = [f"begun/{other}" for other in range(world_size)]
        self._lock = threading.Lock()
        self._begun = 0  # steps
        self._frozen_at = math.inf  # seconds; from then on no step begins until all have answered
        self._last = -1  # of the steps that may begin, once that is known
        self._known = threading.Event()
        self._reason = ""

    @property
    def frozen(self) -> bool:
        """Whether a stop was asked for, by any rank."""
        return self._frozen_at < math.inf

    def begin_step(self) -> str | None:
        """Count a step as begun and return None; or the reason why none may begin any more."""
        with self._lock:
            if not self.frozen:
                self._begun += 1
                return None
        self._known.wait()
        if self._begun == self._last:
            return self._reason
        self._begun += 1
        return None

    def ask(self, reason: str) -> None:
        """Ask all ranks to stop, unless one of them has; the thread's."""
        if not self._store.check(["reason"]):
            self._store.set("reason", reason)

    def follow(self) -> None:
        """Answer if a stop was asked for, and take note of the others' answers; the thread's.

        Raises TimeoutError when ranks have not answered, which are dead or stopped.
        """
        if self._known.is_set() or not self._store.check(["reason"]):
            return
        if not self.frozen:
            with self._lock:
                self._frozen_at = time.monotonic()
            self.answer()
        if self._store.check(self._keys):
            self._last = max(int(begun) for begun in self._store.multi_get(self._keys))
            # All have answered, so none asks any more: the reason is the same everywhere.
            self._reason = self._store.get("reason").decode()
            self._known.set()
        elif time.monotonic() - self._frozen_at > _ANSWER:
            silent = [i for i, key in enumerate(self._keys) if not self._store.check([key])]
            raise TimeoutError(f"no answer from ranks {silent} in {_ANSWER:g} seconds")

    def answer(self) -> None:
        """Tell the others how many steps have begun: no more will, unless another rank's have."""
        self._store.set(self._keys[self._rank], str(self._begun))


class Stops:
    """Asks for a stop on signals and when the time is over; `requested` says when to.

    Enter it around the steps: until then signals do what they always do, for there is nothing to
    save. It must be built, entered and left on every rank, entered in the main thread.

    Args:
        config: `max_hours` counts from here on.
        world: this rank; the process group must stand.
    """

    def __init__(self, config: RunConfig, world: World) -> None:
        self._max_hours, self._rank = config.max_hours, world.rank
        self._deadline = math.inf
        if config.max_hours:
            self._deadline = time.monotonic() + config.max_hours * 3600
        self._agreement = Agreement(open_store(), rank=world.rank, world_size=world.world_size)
        self._reason = ""  # of this rank's own for a stop
        self._interrupted = math.inf  # when the first Ctrl-C came
        self._leaving = threading.Event()

    def requested(self) -> str | None:
        """The reason to stop now, on all ranks in the same call; None to go on.

        Call it before every step, and only there: on each rank as often as on every other. It
        waits for other ranks only where a stop was asked for, reads nothing from the device, and
        does not touch the network.
        """
        return self._agreement.begin_step()

    def __enter__(self) -> Stops:
        self._inbox, self._outbox = socket.socketpair()
        self._outbox.setblocking(False)
        # Python runs handlers between two lines of the main thread, which may wait in a collective
        # for ever; the number of a signal is written to this socket at once.
        self._previous_wakeup = signal.set_wakeup_fd(self._outbox.fileno())
        self._previous = {number: signal.signal(number, _note) for number in _SIGNALS}
        for number in _SIGNALS:
            signal.siginterrupt(number, False)  # libraries need not know of EINTR
        self._thread = threading.Thread(target=self._listen, name="stops", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        signal.set_wakeup_fd(self._previous_wakeup)
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._leaving.set()
        self._outbox.send(b"\0")
        self._thread.join()
        self._inbox.close()
        self._outbox.close()
        if kind is None:
            self._take_leave()

    def _take_leave(self) -> None:
        """Answer before going, so that no rank waits for one that has finished its last step."""
        try:
            self._agreement.answer()
        except RuntimeError as error:  # the store's rank has gone already: it waits for nobody
            logging.debug("the ranks' store is closed: %s", error)

    def _listen(self) -> None:
        """The thread: hears signals and watches the clock and the store."""
        while not self._leaving.is_set():
            ready, _, _ = select.select([self._inbox], [], [], _POLL)
            for number in self._inbox.recv(64) if ready else b"":
                self._hear(number)
            if not self._reason and time.monotonic() > self._deadline:
                self._reason = f"run.max_hours={self._max_hours:g} are over"
            try:
                if self._reason and not self._agreement.frozen:
                    self._agreement.ask(self._reason)
                self._agreement.follow()
            except (RuntimeError, TimeoutError) as error:
                # Without a wish to stop, a store that is gone is another's concern: its rank has
                # finished before this one, or torchrun ends us all.
                if self._reason or self._agreement.frozen:
                    why = self._reason or "another rank asks to stop"
                    _quit(f"{why}, but {error}", NO_ANSWER_EXIT_CODE)

    def _hear(self, number: int) -> None:
        if number not in _SIGNALS:
            return
        now = time.monotonic()
        # torchrun passes a second Ctrl-C on as SIGTERM; schedulers repeat SIGTERM alone.
        if now > self._interrupted + _ECHO:
            _quit("interrupted twice", 128 + signal.SIGINT)
        if number == signal.SIGINT:
            self._interrupted = min(self._interrupted, now)
        if not self._reason:
            self._reason = f"{signal.Signals(number).name} on rank {self._rank}"


def resume_command(argv: Sequence[str], environment: Mapping[str, str]) -> str:
    """The command line that goes on with a run which was started as this process was."""
    # Where the run began matters no more: it has checkpoints of its own.
    script = shlex.join(word for word in argv if not word.startswith("run.resume="))
    if "TORCHELASTIC_RUN_ID" not in environment:
        return f"python {script}"
    ranks, machines = environment["LOCAL_WORLD_SIZE"], environment["GROUP_WORLD_SIZE"]
    if machines == "1":
        return f"torchrun --standalone --nproc_per_node={ranks} {script}"
    return (
        f"torchrun --nnodes={machines} --nproc_per_node={ranks} {script}, on every machine and "
        "with the rendezvous that was given before"
    )


def _note(number: int, frame: FrameType | None) -> None:
    """Nothing is left to do in the main thread: the other one has read the signal's number."""


def _quit(why: str, code: int) -> NoReturn:
    """End the process, whatever its main thread waits for."""
    print(f"{why}: quitting without saving; the last checkpoint stays", file=sys.stderr, flush=True)
    os._exit(code)
