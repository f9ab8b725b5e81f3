"""Stops that lose nothing: signals and a time budget end a run on all ranks after the same step.

Ctrl-C, SIGTERM, SIGHUP, SIGUSR1, `run.max_hours` and the death of the launcher ask for a stop. Only
a second Ctrl-C quits at once: other signals may follow the first without meaning it.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import select
import shlex
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from facestream import USER_ERROR_EXIT_CODE
from training.config import RunConfig
from training.distributed import World
from training.faults.agreement import ANSWER, Agreement, Reason
from training.faults.peers import Peers
from training.faults.store import open_store

NO_ANSWER_EXIT_CODE = os.EX_TEMPFAIL  # a restart may help, as after a hang

_POLL = 0.1  # seconds from what one rank asks to what all others know
_ECHO = 1.0  # seconds in which signals are one: a terminal and a launcher may both pass it on
_LAST_WORDS = 2.0  # seconds for what is written before a process quits
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


class Stopped(Exception):
    """A run was asked to stop and is saved; the text is the reason."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.text)
        self.reason = reason


class Stops:
    """Asks for a stop on signals, when the time is over and when the launcher has died.

    Enter it in the main thread as early as can be and leave it last: while no step is complete on
    all ranks a stop ends the process; from then on `requested` says when to; and after `stepping`
    what is under way is finished. One that is not entered asks for nothing.
    """

    def __init__(self) -> None:
        rank = os.environ.get("RANK", "0")
        self._rank = int(rank) if rank.isdecimal() else 0  # `join_world` refuses others
        self._launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
        self._began = time.monotonic()
        self._max_hours = 0.0
        self._agreement: Agreement | None = None
        self._peers: Peers | None = None
        self._reason: Reason | None = None  # of this rank's own for a stop
        self._asked_at = math.inf  # seconds; when there first was one
        self._interrupted = math.inf  # when the first Ctrl-C came
        self._closing, self._leaving = threading.Event(), threading.Event()
        self._code_if_saved: int | None = None  # of the command, once the run is saved
        self.on_quit: Callable[..., None] = lambda status, *, why, exit_code: None

    def follow(self, config: RunConfig, world: World) -> None:
        """From now on all ranks stop together; call it on every rank, once the world stands.

        Args:
            config: its `max_hours` count from where this object was made.
        """
        self._max_hours, self._rank = config.max_hours, world.rank
        self._peers = Peers()
        self._agreement = Agreement(open_store(), rank=world.rank, world_size=world.world_size)

    def requested(self) -> Reason | None:
        """The reason to stop now, on all ranks in the same call; None to go on.

        Call it before every step, and only there: on each rank as often as on every other. It
        waits for other ranks only where a stop was asked for, reads nothing from the device, and
        does not touch the network.
        """
        assert self._agreement
        return self._agreement.begin_step()

    def step_done(self) -> None:
        """A step is complete, so that a stop has something to save."""
        assert self._agreement
        self._agreement.step_done()

    @contextlib.contextmanager
    def stepping(self) -> Iterator[None]:
        """Around the steps: what follows them is short, and lost if it is not finished."""
        try:
            yield
        except Stopped as stopped:
            self._code_if_saved = stopped.reason.exit_code
            self._closing.set()
            raise
        self._code_if_saved = os.EX_OK
        self._closing.set()
        assert self._agreement
        try:  # answer before it is asked for, so that no rank waits for one that is done
            self._agreement.answer()
        except RuntimeError as error:  # the store's rank has gone already: it waits for nobody
            logging.debug("the ranks' store is closed: %s", error)

    def __enter__(self) -> Stops:
        self._inbox, self._outbox = socket.socketpair()
        self._outbox.setblocking(False)
        # Python runs handlers between two lines of the main thread, which may wait in a collective
        # without end; the number of a signal is written to this socket at once.
        self._previous_wakeup = signal.set_wakeup_fd(self._outbox.fileno())
        heard = [number for number in _SIGNALS if not _ignored(number)]
        self._previous = {number: signal.signal(number, _note) for number in heard}
        for number in heard:
            signal.siginterrupt(number, False)  # libraries need not know of EINTR
        # Two, for a store may freeze with its rank, and a second Ctrl-C is to end that, too.
        self._threads = [
            threading.Thread(target=work, name=name, daemon=True)
            for work, name in ((self._listen, "stops"), (self._talk, "stops of all ranks"))
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # Where ranks end before a step was done, a thread ends this one, too: what the others' end
        # has raised here is of no interest.
        if kind:
            self._await_end()
        signal.set_wakeup_fd(self._previous_wakeup)
        for number, handler in self._previous.items():
            # torchrun ends all ranks once one has: none may die of that instead of its exit code.
            ends = kind is SystemExit and number != signal.SIGINT
            signal.signal(number, signal.SIG_IGN if ends else handler)
        self._leaving.set()
        self._outbox.send(b"\0")
        for thread in self._threads:
            thread.join(ANSWER)
        self._inbox.close()
        self._outbox.close()

    def explain(self, error: BaseException) -> str | None:
        """Whose death is behind an error that ends this rank, see `Peers`; None where none is."""
        self._await_end()
        self._closing.set()  # this rank says what there is to say
        return self._peers.explain(error) if self._peers else None

    def _await_end(self) -> None:
        """Wait while a thread is about to end the process, or to find out that it is not."""
        agreement = self._agreement
        while agreement and agreement.frozen and not self._closing.is_set():
            if agreement.known and not agreement.nothing_done:
                return
            time.sleep(_POLL)

    def _listen(self) -> None:
        """A thread: hears signals and watches the clock and the launcher."""
        while not self._leaving.is_set():
            ready, _, _ = select.select([self._inbox], [], [], _POLL)
            for number in self._inbox.recv(64) if ready else b"":
                self._hear(number)
            if self._closing.is_set():
                continue
            if self._launcher and os.getppid() != self._launcher:
                self._want(f"the launcher of rank {self._rank} is gone", NO_ANSWER_EXIT_CODE)
            if self._max_hours and time.monotonic() > self._began + self._max_hours * 3600:
                # Where that is before a step, whoever starts the run until it is finished would
                # do so without end.
                why = f"run.max_hours={self._max_hours:g} is reached"
                self._want(why, os.EX_OK, if_undone=USER_ERROR_EXIT_CODE)
            silent = self._agreement and not self._agreement.known
            if silent and time.monotonic() > self._asked_at + 2 * ANSWER:
                self._quit(f"{self._reason}, but rank 0 does not answer", NO_ANSWER_EXIT_CODE)

    def _talk(self) -> None:
        """A thread: tells the other ranks of a reason to stop and hears theirs."""
        while not self._leaving.wait(_POLL):
            if self._closing.is_set():
                continue
            try:
                self._agree()
            except (RuntimeError, TimeoutError) as error:
                # Without a wish to stop, a store that is gone is another's concern: its rank has
                # finished before this one, or torchrun ends us all.
                if self._reason or (self._agreement and self._agreement.frozen):
                    why = self._reason or "another rank asks to stop"
                    self._quit(f"{why}, but {error}", NO_ANSWER_EXIT_CODE)

    def _hear(self, number: int) -> None:
        if number not in _SIGNALS:
            return
        now = time.monotonic()
        # A terminal that closes or a container that stops adds SIGHUP or SIGTERM to a Ctrl-C, and
        # means the same. So does torchrun, which makes SIGTERM of a second Ctrl-C: it kills by
        # itself what has not ended after 30 seconds.
        if number == signal.SIGINT and now > self._interrupted + _ECHO:
            self._quit("interrupted twice", 128 + signal.SIGINT)
        if number == signal.SIGINT:
            self._interrupted = min(self._interrupted, now)
        name = signal.Signals(number).name
        self._want(f"{name} on rank {self._rank}", exit_code(number, os.environ))

    def _want(self, text: str, code: int, *, if_undone: int | None = None) -> None:
        if self._reason is None:
            self._reason, self._asked_at = Reason(text, code, if_undone), time.monotonic()

    def _agree(self) -> None:
        if self._agreement is None:
            # A launcher that takes this rank's end for a success lets the others wait for it.
            if self._reason and self._reason.exit_code_undone:
                self._end_undone(self._reason)
            if self._reason and time.monotonic() > self._asked_at + ANSWER:
                self._end_undone(self._reason._replace(exit_code=NO_ANSWER_EXIT_CODE))
            return
        if self._peers.is_dead(0):  # torch would tell at length that the store is, too
            raise TimeoutError("rank 0 is gone")
        if self._reason and not self._agreement.frozen:
            self._agreement.ask(self._reason)
        self._agreement.follow()
        if self._agreement.frozen and not self._agreement.known:
            dead = set(self._peers.dead()).intersection(self._agreement.silent())
            if dead:
                raise TimeoutError(f"rank {', '.join(map(str, sorted(dead)))} is gone")
        if self._agreement.known and self._agreement.nothing_done:
            with contextlib.suppress(RuntimeError):  # the store's rank waits for nobody any more
                self._agreement.see_all_leave()
            self._end_undone(self._agreement.known)

    def _end_undone(self, reason: Reason) -> NoReturn:
        """End the process, whatever its main thread does: it is still before the first step."""
        if self._rank == 0:
            _tell(f"stopped: {reason}, before a step was done: nothing was to be saved")
        self._exit("stopped", f"{reason}, before a step was done", reason.exit_code_undone)

    def _quit(self, why: str, code: int) -> NoReturn:
        """End the process, whatever its main thread waits for."""
        if self._code_if_saved is None:
            _tell(f"{why}: quitting without saving; checkpoints that are complete stay")
            self._exit("failed", f"{why}: quit without saving", code)
        _tell(f"{why}: quitting at once; the run is saved")
        self._exit("stopped", why, self._code_if_saved)

    def _exit(self, status: str, why: str, code: int) -> NoReturn:
        # By a thread: a disk that hangs would keep what is to end it.
        words = {"why": why, "exit_code": code}
        last = threading.Thread(target=self.on_quit, args=(status,), kwargs=words, daemon=True)
        last.start()
        last.join(_LAST_WORDS)
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        os._exit(code)


def exit_code(number: int, environment: Mapping[str, str]) -> int:
    """What a command that a signal has stopped returns: not 0, so that a shell's loop ends, too.

    But where torchrun would take that for a death, and start the ranks again, it is 0.
    """
    return 0 if int(environment.get("TORCHELASTIC_MAX_RESTARTS", 0)) else 128 + number


def resume_command(argv: Sequence[str], environment: Mapping[str, str]) -> str:
    """The command line that resumes a run which was started as this process was."""
    # Where the run began matters no more: it has checkpoints of its own. The local rank comes from
    # torch.distributed.launch, and torchrun says it in the environment.
    dropped = ("run.resume=", "--local-rank=", "--local_rank=")
    script = shlex.join(word for word in argv if not word.startswith(dropped))
    if "TORCHELASTIC_RUN_ID" not in environment:
        return f"{_program('python', environment)} {script}"
    ranks, machines = environment["LOCAL_WORLD_SIZE"], environment["GROUP_WORLD_SIZE"]
    torchrun = _program("torchrun", environment)
    if machines == "1":
        return f"{torchrun} --standalone --nproc_per_node={ranks} {script}"
    return (
        f"{torchrun} --nnodes={machines} --nproc_per_node={ranks} {script}, on every machine and "
        "with the rendezvous that was given before"
    )


def _program(name: str, environment: Mapping[str, str]) -> str:
    """What starts this Python's program: its name alone may be another's, or nobody's."""
    ours = Path(sys.executable).with_name(name)
    found = shutil.which(name, path=environment.get("PATH", ""))
    if "PATH" not in environment or not ours.exists() or found == str(ours):
        return name
    return shlex.quote(os.path.relpath(ours) if ours.is_relative_to(Path.cwd()) else str(ours))


def _ignored(number: int) -> bool:
    """As nohup does with SIGHUP; SIGINT is ignored in a script's background, but still meant."""
    return number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN


def _note(number: int, frame: FrameType | None) -> None:
    """Nothing is left to do in the main thread: the other one has read the signal's number."""


def _tell(text: str) -> None:
    """On stderr, which may be gone with the launcher or a terminal."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)
