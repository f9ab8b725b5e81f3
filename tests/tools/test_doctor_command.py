"""tools/doctor.py: every check is heard, whatever the others do; the exit code says the rest."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.commands import call
from tools import doctor
from tools.checks.finding import fails, note, ok

ROOT = Path(__file__).parents[2]


def test_no_check_is_hidden_by_anothers_failure(capsys):
    checks = {
        "raises": (lambda: 1 / 0, 60),
        "crashes": (lambda: os.kill(os.getpid(), signal.SIGKILL), 60),
        "hangs": (lambda: time.sleep(600), 0.1),
        "imports": (lambda: __import__("no_such_module"), 60),
        "works": (lambda: ok("works", "well"), 60),
        "several": (lambda: [ok("one", "a"), note("two", "b", "do this")], 60),
        "none": (list, 60),
    }
    assert doctor.report(doctor.examine(checks)) == 2
    out = capsys.readouterr().out
    lines = {line.split()[0]: line for line in out.splitlines() if line}
    for subject in ("raises", "crashes", "hangs", "imports"):
        assert lines[subject].split()[1] == "fails"
    assert "ZeroDivisionError" in lines["raises"]
    assert "SIGKILL" in lines["crashes"]
    assert "0.1 seconds" in lines["hangs"]
    assert "well" in lines["works"]
    assert "b" in lines["two"]
    assert "imports: python tools/doctor.py --install" in out
    assert "4 of 7 fail" in out


def test_notes_are_no_failure_and_a_remedy_is_said_once(capsys):
    found = [note("a", "x", "do this"), note("b", "y", "do this"), ok("c", "z")]
    assert doctor.report(iter(found)) == 0
    out = capsys.readouterr().out
    assert out.count("do this") == 1
    assert "0 of 3 fail" in out
    assert doctor.report(iter([*found, fails("d", "w", "mend")])) == 2


@pytest.mark.slow
def test_this_machine_is_ready():
    """What the tests need is what the doctor asks for."""
    done = call(doctor.main)
    assert done.returncode == 0, done.stdout
    assert " adds up over " in done.stdout


@pytest.mark.slow
def test_it_needs_nothing_installed(tmp_path):
    """Not even torch: -S leaves Python's own library alone."""
    done = subprocess.run(
        [sys.executable, "-S", ROOT / "tools/doctor.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr == ""
    said = {line.split()[0] for line in done.stdout.splitlines() if line}
    assert said >= (set(doctor.CHECKS) - {"packages", "gpu"}) | {"numpy", "torch"}
    line = subprocess.run(
        [sys.executable, "-S", ROOT / "tools/doctor.py", "--install"],
        capture_output=True,
        text=True,
        timeout=300,
    ).stdout
    assert line.count("\n") == 1
    assert "requirements-user.txt 'torch>=2.6," in line
