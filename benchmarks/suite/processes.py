"""Stages as processes of their own, so that a fault or a hang ends one of them alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_GRACE = 10.0  # seconds from asking a stage to end to ending it; torchrun ends its ranks meanwhile


@dataclass(frozen=True)
class Stage:
    """command: a process that adds JSON lines to the file `figures`; seconds: its time; variables:
    of its environment, beside those of this process."""

    command: Sequence[str]
    figures: Path
    seconds: float
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """failed: why the stage did not end well, if so; its figures are those it had until then."""

    seconds: float
    limit: float
    failed: str | None
    figures: list[dict[str, Any]] = field(default_factory=list)


def launcher(ranks: int) -> list[str]:
    """What a command line begins with, for Python on so many processes of this machine."""
    if ranks == 1:
        return [sys.executable]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    return [sys.executable, *torchrun]


def run(stage: Stage, log: Path) -> Outcome:
    """Run a stage to its end or to its limit; what it prints goes to `log`."""
    stage.figures.unlink(missing_ok=True)
    begin = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(
            stage.command,
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **stage.variables},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a group that can be ended whole
        )
        try:
            status = process.wait(stage.seconds)
            failed = None if status == 0 else f"exit status {status}: {_last_line(log)}"
        except subprocess.TimeoutExpired:
            failed = f"not done after {stage.seconds:g} s"
        finally:
            _end(process)
    return Outcome(time.monotonic() - begin, stage.seconds, failed, _read(stage.figures))


def _end(process: subprocess.Popen) -> None:
    """End the whole group, whatever of it is left."""
    try:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(_GRACE)
        os.killpg(process.pid, signal.SIGKILL)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    except ProcessLookupError:  # nobody is left
        return


def _read(figures: Path) -> list[dict[str, Any]]:
    if not figures.exists():
        return []
    lines = figures.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]  # the last may be cut off


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "it printed nothing"
