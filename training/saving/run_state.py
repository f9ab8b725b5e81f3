"""RUN/state.json: how far a run is and why it ended, for scripts and for the next start.

status                     running, finished, stopped (on request, and saved) or failed
finished                   whether the last step is done and saved
step, total_steps, epoch   done so far: of a run that is running, at its newest checkpoint
why                        it ended, in words; empty while it is running
exit_code                  of the command; null while it is running
checkpoint                 the newest that is complete, or null
time                       of this writing, UTC
host, pid                  of the main rank
memory_predicted_mb, memory_available_mb     of a rank, before the start
memory_kills               processes that the machine's memory killer had ended; null: unknown
"""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

from facestream import USER_ERROR_EXIT_CODE
from pipeline.named_path import MALFORMED, as_text, mendable
from pipeline.whole_file import write_whole
from training.faults.memory_killer import count_kills
from training.faults.stops import NO_ANSWER_EXIT_CODE
from training.reporting.outlet import Outlet
from training.saving.files import step_of
from training.saving.lock import Lock

NAME = "state.json"


class RunState:
    """What state.json says; the main rank's.

    The file is replaced as a whole. Where it cannot be written, that is said, and the run goes on.
    The first end that is written counts, whatever a process that is about to leave writes; a run
    that was finished before this process stays so, as long as no step of it is missing. Safe to use
    from several threads.

    Args:
        output: the run's folder, which must be this run's.
        steps_per_epoch, total_steps: of the run.
        memory_predicted, memory_available: bytes of a rank.
        lock: what holds the folder; a run that has lost it writes nothing.
    """

    def __init__(
        self,
        output: Path,
        *,
        steps_per_epoch: int,
        total_steps: int,
        memory_predicted: int,
        memory_available: int,
        lock: Lock | None = None,
    ) -> None:
        self._path, self._steps_per_epoch, self._folder = output / NAME, steps_per_epoch, lock
        self._outlet, self._lock = Outlet(str(self._path)), threading.RLock()
        self.before = _read(self._path)
        step = self.before.get("step", 0)
        if self.before.get("finished") and step >= total_steps:
            status, why, exit_code = "finished", self.before.get("why"), os.EX_OK
        else:
            status, why, exit_code = "running", "", None
        self._content: dict[str, Any] = {
            "status": status,
            "why": why,
            "exit_code": exit_code,
            "step": step,
            "total_steps": total_steps,
            "checkpoint": self.before.get("checkpoint"),
            "host": os.uname().nodename,
            "pid": os.getpid(),
            "memory_predicted_mb": round(memory_predicted / 1e6),
            "memory_available_mb": round(memory_available / 1e6),
            "memory_kills": count_kills(),
        }

    def begin(self, step: int, checkpoint: Path | None) -> None:
        """The run goes on from here."""
        with self._lock:
            if self._content["status"] in ("stopped", "failed"):
                return  # a thread is about to end the process
            if step < self._content["total_steps"]:
                self._content |= {"status": "running", "why": "", "exit_code": None}
            self._write(step=step, checkpoint=checkpoint and as_text(str(checkpoint)))

    def saved(self, checkpoint: Path) -> None:
        """A checkpoint is complete."""
        with self._lock:  # the last one is, after the run has come to its end
            step = step_of(checkpoint)
            self._write(step=max(step, self._content["step"]), checkpoint=as_text(str(checkpoint)))

    def end(self, status: str, *, why: str, exit_code: int, **known: int) -> None:
        """The run ends. known: the step, where it is another than that of the checkpoint."""
        with self._lock:
            if self._content["status"] == "running":
                self._write(status=status, why=why, exit_code=exit_code, **known)

    def fail(self, error: Exception, *, loss: str | None = None, **known: int) -> None:
        """The run ends by an error; loss: of which rank that is the consequence, in words."""
        code = NO_ANSWER_EXIT_CODE if loss else USER_ERROR_EXIT_CODE if mendable(error) else 1
        self.end("failed", why=loss or describe(error), exit_code=code, **known)

    def _write(self, **known: Any) -> None:
        if self._folder:
            self._folder.require()
        with self._lock:
            self._content |= known
            state = {
                **self._content,
                "finished": self._content["status"] == "finished",
                "epoch": self._content["step"] / self._steps_per_epoch,
                "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            }
            aside = self._path.with_suffix(".unfinished")
            content = json.dumps(state, indent=2)
            self._outlet.attempt(lambda: write_whole(self._path, content, aside=aside))


def describe(error: Exception) -> str:
    """An error in words."""
    return f"{type(error).__name__}: {error}"


def describe_silent_end(before: dict[str, Any]) -> str | None:
    """What became of a run that had no time to say so; None where it did, or there was none.

    Args:
        before: what state.json said when the next run began, whose folder it is now.
    """
    if before.get("status") != "running":
        return None
    line = f"ended without a word after the checkpoint of step {before.get('step')}"
    kills, now = before.get("memory_kills"), count_kills()
    same_machine = before.get("host") == os.uname().nodename
    if same_machine and None not in (kills, now) and now > kills:
        line += f": the machine's memory killer has ended {now - kills} processes since it began"
    else:
        line += ": it was killed, perhaps by the machine's memory killer (see dmesg)"
    return (
        f"{line}. A rank was predicted to take {before.get('memory_predicted_mb')} MB of "
        f"{before.get('memory_available_mb')} MB available"
    )


def _read(path: Path) -> dict[str, Any]:
    """Empty where there is none that can be read."""
    try:
        content = dict(json.loads(path.read_text()))
    except (OSError, *MALFORMED):
        return {}
    return content if isinstance(content.get("step"), int) else {}
