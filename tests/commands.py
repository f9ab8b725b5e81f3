"""Commands called in this process, or in one forked from the ranks' server: others would import
torch for seconds."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
import torch.distributed as dist

from tests.clock import LIMIT
from tests.ranks import FORKSERVER
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


def call_apart(main: Callable[[], None], *arguments: object, folder: Path) -> Ended:
    """Call a command's `main` in a process of its own, as a shell in `folder` would start it."""
    with tempfile.TemporaryDirectory() as written:
        files = [Path(written) / name for name in ("stdout", "stderr")]
        given = (main, list(map(str, arguments)), folder, files, os.environ.copy())
        process = FORKSERVER.Process(target=_apart, args=given)
        process.start()
        process.join(LIMIT)
        code = process.exitcode
        process.kill()  # else the tests could not end; of one that has ended it does nothing
        out, err = (file.read_text() for file in files)
    assert code is not None, f"it does not end: {out}{err}"
    return Ended(code, out, err)


def _apart(
    main: Callable[[], None],
    arguments: list[str],
    folder: Path,
    files: list[Path],
    environment: Mapping[str, str],
) -> None:
    os.environ |= environment  # the server has that of when it began
    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(folder)
    sys.argv = [main.__module__, *arguments]
    main()


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
