"""A scan that takes long says how far it is; a short one says nothing."""

from __future__ import annotations

from training.reporting.scan_progress import scan_progress


def test_a_line_every_ten_seconds_with_what_is_left(capsys):
    times = iter([0.0, 4.0, 12.0, 15.0, 23.0])
    message = scan_progress("faces", clock=lambda: next(times))
    for done in (20, 60, 75, 92):
        message(done, 100)
    first, second = capsys.readouterr().out.splitlines()
    assert "faces" in first
    assert "60%, some 8 s are left" in first
    assert "92%, some 2 s are left" in second


def test_a_short_one_says_nothing(capsys):
    message = scan_progress("faces", clock=lambda: 1.0)
    message(100, 100)
    assert capsys.readouterr().out == ""
