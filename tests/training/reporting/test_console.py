"""A console that breaks is noticed by nobody who writes to it."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import TextIO

import pytest
from rich.console import Console
from rich.progress import Progress

from training.reporting.console import Stream, protect_console
from training.reporting.lines import ConsoleHandler

ROOT = Path(__file__).parents[3]


def broken_pipe() -> TextIO:
    """As stdout under `| head` when that is gone."""
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "w")


@pytest.fixture
def messages() -> list[str]:
    return []


def test_a_pipe_that_nobody_reads_is_said_once(messages):
    pipe = broken_pipe()
    stream = Stream(pipe, name="stdout", tell=messages.append)
    for _ in range(3):
        assert stream.write("a line\n") == 7
    assert messages == ["stdout: [Errno 32] Broken pipe. The run goes on and tries again"]
    pipe.close()  # as at the end of the process: nothing is left in it that would fail


def test_a_full_disk_is_tried_again(messages):
    with open("/dev/full", "w") as full:
        stream = Stream(full, name="stdout", tell=messages.append)
        for _ in range(3):
            stream.write("a line\n")
        assert messages == [
            "stdout: [Errno 28] No space left on device. The run goes on and tries again"
        ]
        room = os.open(os.devnull, os.O_WRONLY)
        os.dup2(room, full.fileno())
        os.close(room)
        stream.write("a line\n")
        assert messages[1] == "stdout can be written again, after 3 failures"


def test_what_the_stream_is_it_stays(messages):
    with open(os.devnull, "w", encoding="ascii") as nowhere:
        stream = Stream(nowhere, name="stdout", tell=messages.append)
        assert stream.fileno() == nowhere.fileno()
        assert stream.encoding == "ascii"
        assert not stream.isatty()


def test_rich_prints_bars_and_warnings_into_a_broken_pipe(monkeypatch, messages):
    """Rich ends the process where a plain stream breaks, from a thread of its own, too."""
    monkeypatch.setattr(sys, "stdout", Stream(broken_pipe(), name="stdout", tell=messages.append))
    console = Console(force_terminal=True)
    with Progress(console=console, refresh_per_second=100) as progress:
        progress.add_task("train", total=3)
        console.print("a line")
    ConsoleHandler().emit(
        logging.LogRecord("root", logging.WARNING, "", 0, "a warning", None, None)
    )
    print("plain")
    assert len(messages) == 1


def test_stdout_that_breaks_is_reported_on_stderr_and_in_run_log(monkeypatch, caplog):
    monkeypatch.setattr(sys, "stdout", broken_pipe())
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    protect_console()
    print("a line", flush=True)
    print("another", flush=True)
    assert sys.stderr.getvalue().count("Broken pipe") == 1
    assert len([r for r in caplog.records if "Broken pipe" in r.getMessage()]) == 1


def test_both_may_break(monkeypatch, caplog):
    monkeypatch.setattr(sys, "stdout", broken_pipe())
    monkeypatch.setattr(sys, "stderr", broken_pipe())
    protect_console()
    print("a line", flush=True)
    print("a complaint", file=sys.stderr, flush=True)
    assert "stdout: [Errno 32] Broken pipe" in caplog.text


CLOSED = """
import os
from training.reporting.console import protect_console
protect_console()
print("a line")
with open({path!r}, "w") as file:
    file.write("a checkpoint")
    file.flush()
    os.write(1, b"a line")
    os.write(2, b"a complaint")
"""


def test_a_process_whose_console_is_closed_writes_it_into_no_file(tmp_path):
    """As a shell's `>&- 2>&-`: the next file that is opened would be number 1."""
    path = tmp_path / "file"
    script = CLOSED.format(path=str(path))
    command = ["sh", "-c", 'exec "$0" -c "$1" <&- >&- 2>&-', sys.executable, script]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0
    assert path.read_text() == "a checkpoint"


def test_a_terminal_that_hung_up_is_said_once(messages):
    terminal, end = os.openpty()
    with open(end, "w") as stdout:
        stream = Stream(stdout, name="stdout", tell=messages.append)
        stream.write("a line\n")
        assert messages == []
        os.close(terminal)
        stream.write("a line\n")
        stream.write("a line\n")
        assert messages == ["stdout: [Errno 5] Input/output error. The run goes on and tries again"]
        os.dup2(os.open(os.devnull, os.O_WRONLY), end)  # for what is left when it is closed


def test_letters_that_a_console_does_not_have_are_no_failure(monkeypatch):
    shown = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", shown)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    protect_console()
    print("0.65 → 0.9", flush=True)
    assert shown.buffer.getvalue() == b"0.65 \\u2192 0.9\n"
