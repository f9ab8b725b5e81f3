"""How long indexing a .rec file takes, against reading it once from front to end:

    python benchmarks/index_scan.py --gigabytes 4

Writes a file of random bytes in records of about 7 KB, reads it once so that it is in the page
cache, then takes turns: `cat FILE > /dev/null`, the scan, and all of rec2idx as a process of its
own. Medians are compared; every round is kept.
Results go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.ahead import cores
from pipeline.classify import scan_rec
from pipeline.recordio import RecordWriter, pack_image

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"


def write_rec(path: Path, size: int) -> int:
    """Fill `path` with `size` bytes of records of noise; returns how many there are."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, 1 << 24, dtype=np.uint8).tobytes()
    key = offset = 0
    with RecordWriter(path) as writer:
        while offset < size:
            length = int(rng.gamma(12, 580))  # like 112 × 112 JPEGs: 7 KB, give or take 2
            begin = int(rng.integers(0, len(noise) - length))
            offset = writer.write(pack_image(noise[begin : begin + length], float(key // 60), key))
            key += 1
    return key


def seconds(action: Callable[[], object]) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def measure(rec: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds of each contestant, once a round."""
    command = [sys.executable, f"{ROOT}/tools/rec2idx.py", f"{rec}", "-o", f"{rec.parent}/out"]
    contestants: dict[str, Callable[[], object]] = {
        "cat": lambda: subprocess.run(["cat", rec], stdout=subprocess.DEVNULL, check=True),
        "scan": lambda: scan_rec(rec),
        "rec2idx": lambda: subprocess.run(command, capture_output=True, check=True),
    }
    contestants["cat"]()  # fills the page cache
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, action in contestants.items():
            times[name].append(seconds(action))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0].rstrip(":"))
    parser.add_argument("--gigabytes", type=float, default=4.0, help="size (default 4)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write the file (default: temporary)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        rec = Path(scratch) / "train.rec"
        records = write_rec(rec, int(arguments.gigabytes * 1e9))
        size = rec.stat().st_size
        times = measure(rec, arguments.rounds)
    table = Table("", "s, median", "GB/s", "× cat", "all rounds")
    for name, taken in times.items():
        typical = statistics.median(taken)
        row = (typical, size / typical / 1e9, typical / statistics.median(times["cat"]))
        table.add_row(name, *(f"{x:.2f}" for x in row), " ".join(f"{x:.2f}" for x in taken))
    Console().print(table)
    result = {
        "bytes": size,
        "records": records,
        "cores": cores(),
        "seconds": {name: [round(x, 4) for x in taken] for name, taken in times.items()},
        "over_cat": {
            name: {
                "median": round(statistics.median(taken) / statistics.median(times["cat"]), 3),
                "fastest": round(min(taken) / min(times["cat"]), 3),
            }
            for name, taken in times.items()
            if name != "cat"
        },
        "versions": {"python": platform.python_version(), "numpy": np.__version__},
    }
    path = RESULTS / f"index_scan_cpu_{date.today()}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
