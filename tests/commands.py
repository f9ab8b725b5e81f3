"""Commands called in this process: one of their own would import torch for seconds."""

from __future__ import annotations

import contextlib
import io
import signal
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
import torch.distributed as dist

from training.distributed import leave_world


class Ended(NamedTuple):
    """What a command has left: as subprocess.CompletedProcess names it."""

    returncode: int
    stdout: str
    stderr: str


def call(main: Callable[[], None], *arguments: object) -> Ended:
    """Call a command's `main` with these arguments; what is a mistake of ours is raised."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, _as_before():
        patch.setattr(sys, "argv", [main.__module__, *map(str, arguments)])
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main()
            except SystemExit as ended:
                code = int(ended.code or 0)
    return Ended(code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def _as_before() -> Iterator[None]:
    """Without the process group and the deafness to signals that an ended process leaves."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
    handlers = [(number, signal.getsignal(number)) for number in numbers]
    alone = not dist.is_initialized()
    try:
        yield
    finally:
        for number, handler in handlers:
            signal.signal(number, handler)
        if alone and dist.is_initialized():
            leave_world()
