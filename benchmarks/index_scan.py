"""How long indexing a .rec file takes, against reading it once from front to end:

    python benchmarks/index_scan.py --gigabytes 4

Writes a file of random bytes in records of about 7 KB, reads it once so that it is in the page
cache, then takes turns: `cat FILE > /dev/null`, the scan, and all of rec2idx as a process of its
own. Medians are compared; every round is kept.
Results go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness import about_cpu, medians, save, show, take_turns
from pipeline.records.recordio import RecordWriter, pack_image
from pipeline.records.scan import scan_rec

ROOT = Path(__file__).resolve().parents[1]


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


def measure(rec: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds of each contestant, once a round."""
    command = [sys.executable, f"{ROOT}/tools/rec2idx.py", f"{rec}", "-o", f"{rec.parent}/out"]
    contestants: dict[str, Callable[[], object]] = {
        "cat": lambda: subprocess.run(["cat", rec], stdout=subprocess.DEVNULL, check=True),
        "scan": lambda: scan_rec(rec),
        "rec2idx": lambda: subprocess.run(command, capture_output=True, check=True),
    }
    contestants["cat"]()  # fills the page cache
    return take_turns(contestants, rounds=rounds, warm_up=0)


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
    typical = medians(times)
    show(
        ("", "s, median", "GB/s", "× cat", "all rounds"),
        [
            (
                name,
                f"{taken:.2f}",
                f"{size / taken / 1e9:.2f}",
                f"{taken / typical['cat']:.2f}",
                " ".join(f"{x:.2f}" for x in times[name]),
            )
            for name, taken in typical.items()
        ],
    )
    over_cat = {
        name: {
            "median": round(typical[name] / typical["cat"], 3),
            "fastest": round(min(taken) / min(times["cat"]), 3),
        }
        for name, taken in times.items()
        if name != "cat"
    }
    about = about_cpu() | {"bytes": size, "records": records}
    save("index_scan", about, seconds=times, over_cat=over_cat)


if __name__ == "__main__":
    main()
