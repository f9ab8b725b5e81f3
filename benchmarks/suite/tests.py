"""The tests that need a GPU; those that need DALI too are skipped where it is missing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.suite.figures import options_of, write


class Recorder:
    """A plugin of pytest that writes a row for each test as it ends."""

    def __init__(self, figures: Path) -> None:
        self._figures = figures

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return
        row = {"test": report.nodeid, "outcome": report.outcome, "took_s": report.duration}
        if report.failed:
            row["failed"] = report.longreprtext.strip().splitlines()[-1][:300]
        write(self._figures, row)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            write(self._figures, {"test": report.nodeid, "failed": "it cannot be imported"})


def main() -> None:
    options = options_of()
    where = ["tests/heads/test_graph.py"] if options.quick else ["tests"]
    command = ["-m", "gpu", "-rs", "--tb=short", "-p", "no:cacheprovider", *where]
    sys.exit(pytest.main(command, plugins=[Recorder(options.figures)]))


if __name__ == "__main__":
    main()
