"""How long the figures of scored pairs take, with their intervals, once images are embedded:

    python benchmarks/metrics_speed.py

Ten sets of LFW's size (6,000 pairs of 5,749 people's 7,701 images) with 1,000 draws each, and 10⁸
impostors counted in blocks against 10⁵ genuine scores. Results go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness import about_cpu, save, show
from evaluation.metrics.impostor_counter import ImpostorCounter
from evaluation.metrics.judge import judge_pairs

SETS, PAIRS, PEOPLE, IMAGES = 10, 6_000, 5_749, 7_701
GENUINE, BLOCKS, BLOCK = 100_000, 10, 10_000_000


def lfw_like(seed: int) -> dict[str, Any]:
    """Arguments of `judge_pairs`: random scores, in folds of 300 genuine and 300 impostor pairs."""
    random = np.random.default_rng(seed)
    people = np.arange(IMAGES) % PEOPLE  # 1,952 of them have two images
    same = np.arange(PAIRS) % 600 < 300
    first = np.where(
        same, random.integers(0, IMAGES - PEOPLE, PAIRS), random.integers(0, IMAGES, PAIRS)
    )
    stranger = (first + random.integers(1, PEOPLE, PAIRS)) % PEOPLE
    return {
        "scores": random.normal(np.where(same, 0.6, 0.05), 0.12).clip(-1, 1),
        "same": same,
        "first": first,
        "second": np.where(same, first + PEOPLE, stranger),
        "people": people,
        "quality": {"norm": random.random(IMAGES)},
    }


def judge_sets(draws: int) -> float:
    """Seconds for all sets."""
    sets = [lfw_like(seed) for seed in range(SETS)]
    began = time.perf_counter()
    for one in sets:
        judge_pairs(**one, draws=draws)
    return time.perf_counter() - began


def count_impostors() -> float:
    """Seconds for all blocks; the same scores each time, which the counter does not know."""
    random = np.random.default_rng(0)
    genuine, impostors = random.normal(0.6, 0.12, GENUINE), random.normal(0.03, 0.09, BLOCK)
    counter = ImpostorCounter(genuine.astype(np.float32))
    block = impostors.astype(np.float32)
    began = time.perf_counter()
    for _ in range(BLOCKS):
        counter.add(block)
    counter.roc().tar_at_far(1e-6)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0].rstrip(":"))
    parser.add_argument("--draws", type=int, default=1000, help="of the bootstrap (default 1000)")
    arguments = parser.parse_args()
    seconds = {
        f"{SETS} sets of {PAIRS:,} pairs, {arguments.draws:,} draws": judge_sets(arguments.draws),
        f"{BLOCKS * BLOCK:,} impostors counted in blocks": count_impostors(),
    }
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    show(("", "s"), [(name, f"{s:.1f}") for name, s in seconds.items()], title="Metrics")
    print(f"at most {memory:,.0f} MB, the libraries and the blocks included")
    save(
        "metrics_speed",
        about_cpu(),
        seconds={name: round(s, 2) for name, s in seconds.items()},
        memory_mb=round(memory),
    )


if __name__ == "__main__":
    main()
