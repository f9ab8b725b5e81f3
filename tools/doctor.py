"""Look this machine over before a run:  python tools/doctor.py

Versions, what really runs on each GPU, ranks, decoding, memory, disks; and what to change. Each
check is a process of its own, so that one which crashes or hangs hides no other. It needs nothing
installed, not even torch. Exit codes: 0 where training runs, 2 where something keeps it from it.

--install prints the one line that installs what is missing beside the torch that is there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from facestream import USER_ERROR_EXIT_CODE
from tools.checks.apart import ApartError, apart
from tools.checks.decoding import check_dali, check_jpeg
from tools.checks.driver import check_driver
from tools.checks.finding import Finding, fails, remedy_of
from tools.checks.gpu import check_gpus
from tools.checks.machine import (
    check_compiler,
    check_cores,
    check_disks,
    check_memory,
    check_python,
    check_shared_memory,
)
from tools.checks.packages import check_packages, check_torch, install_line
from tools.checks.ranks import check_ranks
from training.command import ending

# By what each looks at, with the seconds that it may take.
CHECKS: dict[str, tuple[Callable[[], Any], int]] = {
    "python": (check_python, 10),
    "torch": (check_torch, 120),
    "packages": (check_packages, 600),
    "driver": (check_driver, 60),
    "gpu": (check_gpus, 900),
    "ranks": (check_ranks, 300),
    "jpeg": (check_jpeg, 60),
    "dali": (check_dali, 600),
    "cores": (check_cores, 60),
    "memory": (check_memory, 10),
    "/dev/shm": (check_shared_memory, 10),
    "disk": (check_disks, 60),
    "compiler": (check_compiler, 10),
}


def examine(checks: dict[str, tuple[Callable[[], Any], int]]) -> Iterator[Finding]:
    """What each check finds, as soon as it is there; one that breaks is a finding, too."""
    for subject, (check, seconds) in checks.items():
        try:
            found = apart(check, seconds=seconds)
        except ApartError as error:
            text = "see the lines above: the cause may be there"
            yield fails(subject, str(error), remedy_of(error, text))
        else:
            yield from [found] if isinstance(found, Finding) else found


def report(findings: Iterator[Finding]) -> int:
    """Print each; then what to change. Returns the command's exit code."""
    remedies: dict[str, str] = {}
    states = []
    for one in findings:
        print(f"{one.subject:<13} {one.state:<6} {one.text}", flush=True)
        states.append(one.state)
        if one.remedy:
            remedies.setdefault(one.remedy, one.subject)
    print()
    for remedy, subject in remedies.items():
        print(f"{'to change':<13} {subject}: {remedy}")
    failed = states.count("fails")
    print(f"{'in all':<13} {failed} of {len(states)} fail{'s' * (failed == 1)}")
    return USER_ERROR_EXIT_CODE if failed else 0


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    found = argparse.ArgumentParser(description=__doc__.splitlines()[0].partition(":")[0] + ".")
    found.add_argument(
        "--install", action="store_true", help="print the line that installs what is missing"
    )
    return found


def main() -> None:
    arguments = parser().parse_args()
    with ending("doctor"):
        if arguments.install:
            print(install_line())
            return
        status = report(examine(CHECKS))
    sys.exit(status)


if __name__ == "__main__":
    main()
