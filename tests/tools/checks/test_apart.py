"""Work in a process of its own: its result, or in words why there is none."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.clock import LIMIT, wait_until
from tools.checks.apart import ApartError, apart, apart_together


def crash() -> None:
    faulthandler.disable()  # pytest's, which writes past what is caught
    os.write(2, b"about to end\n")
    os.kill(os.getpid(), signal.SIGSEGV)


def hang() -> None:
    time.sleep(LIMIT)


def test_what_work_returns_comes_back_and_what_it_prints_does_not(capfd):
    def work() -> dict[str, int]:
        os.write(1, b"as libraries do")
        return {"pid": os.getpid()}

    assert apart(work, seconds=LIMIT) != {"pid": os.getpid()}
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("work", "words"),
    [
        (lambda: 1 / 0, "ZeroDivisionError: division by zero"),
        (crash, "ended by SIGSEGV; its last line: about to end"),
        (lambda: sys.exit(7), "ended with 7"),
        (lambda: lambda: None, "pickle|local object"),  # what cannot be sent
    ],
    ids=["raises", "crashes", "exits", "returns a function"],
)
def test_whatever_ends_it_is_said_in_words(work, words):
    with pytest.raises(ApartError, match=words):
        apart(work, seconds=LIMIT)


def test_what_hangs_is_ended_with_all_that_it_has_started(tmp_path, monkeypatch):
    note, this = tmp_path / "pid", os.getpid()
    # At the start, at the first result, at the second: nobody waits for it to be late.
    clock = iter([0.0, 0.0, 2 * LIMIT])
    now = SimpleNamespace(monotonic=lambda: next(clock) if os.getpid() == this else 0.0)
    monkeypatch.setattr("tools.checks.apart.time", now)

    def hang_below() -> None:
        def below() -> None:
            note.write_text(str(os.getpid()))
            hang()

        apart(below, seconds=LIMIT)

    def wait_for_it() -> bool:
        while not (note.exists() and note.read_text()):
            time.sleep(0.005)
        return True

    results = apart_together([wait_for_it, hang_below], seconds=LIMIT)
    assert results[0] is True
    assert f"not done after {LIMIT:g} seconds" in str(results[1])
    status = Path(f"/proc/{note.read_text()}/status")
    wait_until(lambda: not status.exists() or "State:\tZ" in status.read_text())


def test_an_error_stays_one_line_of_which_the_ends_are_kept():
    def fail() -> None:
        raise ValueError("begin\n" + "x" * 5000 + "\nend")

    with pytest.raises(ApartError) as caught:
        apart(fail, seconds=LIMIT)
    text = str(caught.value)
    assert len(text) < 400
    assert "\n" not in text
    assert text.startswith("ValueError: begin x")
    assert text.endswith("x end")


def test_no_temporary_folder_is_needed(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/proc/none")
    assert apart(lambda: 1, seconds=LIMIT) == 1
