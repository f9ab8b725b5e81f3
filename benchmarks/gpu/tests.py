"""The tests that need a GPU; those that need DALI too are skipped where it is missing."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.gpu.figures import Row, options_of, write


def main() -> None:
    options = options_of()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        where = ["tests/heads/test_graph.py"] if options.quick else ["tests"]
        command = ["-m", "pytest", "-m", "gpu", "-rs", "--tb=short", "-p", "no:cacheprovider"]
        done = subprocess.run([sys.executable, *command, f"--junitxml={report}", *where])
        for row in _rows(report):
            write(options.figures, row)
    sys.exit(done.returncode)


def _rows(report: Path) -> list[Row]:
    """How many passed, and the ones that did not."""
    (suite,) = ElementTree.parse(report).getroot()
    count = {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
    failed = count["failures"] + count["errors"]
    row = {"passed": count["tests"] - failed - count["skipped"], "skipped_tests": count["skipped"]}
    rows: list[Row] = [row | {"failed_tests": failed, "took_s": float(suite.attrib["time"])}]
    for case in suite:
        for fault in (*case.findall("failure"), *case.findall("error")):
            message = (fault.get("message") or "").splitlines()
            rows.append({"test": case.get("name"), "failed": "".join(message[:1])[:300]})
    return rows


if __name__ == "__main__":
    main()
