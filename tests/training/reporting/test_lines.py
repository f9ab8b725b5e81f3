"""What the console shows stays whole, and says when where nobody watches."""

from __future__ import annotations

import io
import logging
import os
import re
import sys

import pytest

from training.reporting.lines import ConsoleHandler, open_console, show, timed

LONG = "checkpoint   /a/very/long/folder" + "/and/longer" * 30 + " [bold]:smile:"


def test_a_line_is_never_folded_and_has_its_time_where_nobody_watches(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    show(open_console(), LONG)
    when, message = sys.stdout.getvalue().split("  ", 1)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", when)
    assert message == f"{LONG}\n"


def test_a_terminal_shows_the_line_alone(monkeypatch):
    terminal, end = os.openpty()
    with os.fdopen(end, "w") as stdout, os.fdopen(terminal, "rb", buffering=0) as seen:
        monkeypatch.setattr(sys, "stdout", stdout)
        show(open_console(), LONG)
        stdout.flush()
        assert seen.read(4096).decode().strip() == LONG


@pytest.mark.parametrize(("level", "name"), [(30, "WARNING"), (40, "ERROR")])
def test_a_warning_is_one_line_with_the_time_it_was_made(monkeypatch, level, name):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    record = logging.LogRecord("root", level, "", 0, "%s is damaged", (LONG,), None)
    record.created = 0.0
    ConsoleHandler().emit(record)
    assert sys.stdout.getvalue() == timed(f"{name}  {LONG} is damaged", at=0.0) + "\n"


def test_every_line_of_a_text_has_its_time():
    first, second = timed("one\ntwo", at=0.0).splitlines()
    assert first.endswith("  one")
    assert second == first.replace("one", "two")
