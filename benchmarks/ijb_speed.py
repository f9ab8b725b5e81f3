"""How long IJB takes once its images are embedded, at IJB-C's size, and in how much memory:

    python benchmarks/ijb_speed.py --draws 1000

Writes lists of IJB-C's lengths and random embeddings around a center of each subject (1 GB, mapped
from the file as kept embeddings are), then times each step. Memory is what the process holds of its
own at most in a step, sampled every 10 ms, its libraries included, and the mapped file not.
Results go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness import about_cpu, save, show
from evaluation.features import Features
from evaluation.images import Images
from evaluation.metrics.searches import search
from evaluation.pair_products import pair_products
from evaluation.protocols.ijb import Ijb
from evaluation.protocols.ijb_files import IjbFiles, read_ijb_files
from evaluation.protocols.protocol import Asked
from evaluation.protocols.templates import pool

IMAGES, SUBJECTS, TEMPLATES = 469_375, 3_531, 23_124
GENUINE, PAIRS = 19_557, 15_658_489
WIDTH = 512


@dataclass
class Steps:
    """Seconds of each step, and the most memory in it, in MB."""

    seconds: dict[str, float] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        seen = [own_memory()]
        over = threading.Event()

        def watch() -> None:
            while not over.wait(0.01):
                seen.append(own_memory())

        watcher = threading.Thread(target=watch)
        watcher.start()
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = time.perf_counter() - begin
            over.set()
            watcher.join()
            self.memory[name] = max(*seen, own_memory())


def own_memory() -> float:
    """MB that this process holds of its own: not what is mapped from files."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"^RssAnon:\s+(\d+) kB", status, re.MULTILINE)[1]) / 1e3


def write_lists(folder: Path, scale: float) -> np.ndarray:
    """A subject has a template in a gallery and others as probes; returns (images,) subjects."""
    random = np.random.default_rng(0)
    images, subjects = int(IMAGES * scale), int(SUBJECTS * scale)
    templates = int(TEMPLATES * scale)
    of_template = np.r_[np.arange(subjects), random.integers(0, subjects, templates - subjects)]
    of_image = np.sort(
        np.r_[np.arange(templates), random.integers(0, templates, images - templates)]
    )
    meta = folder / "meta"
    meta.mkdir(parents=True)

    def lines(name: str, rows: Iterator[str]) -> None:
        with (meta / f"ijbc_{name}").open("w") as file:
            file.writelines(f"{row}\n" for row in rows)

    media = random.integers(0, images // 3, images)
    lines("face_tid_mid.txt", (f"{i}.jpg {t} {m}" for i, (t, m) in enumerate(zip(of_image, media))))
    points = " ".join(f"{x:.3f}" for x in random.uniform(30, 80, 10))
    scores = random.uniform(0.5, 1, images)
    lines("name_5pts_score.txt", (f"{i}.jpg {points} {s:.3f}" for i, s in enumerate(scores)))
    parts = np.where(np.arange(templates) < subjects, of_template % 2, 2)
    for part, name in enumerate(("gallery_G1", "gallery_G2", "probe_mixed")):
        rows = [f"{t},{of_template[t]},x" for t in np.flatnonzero(parts == part)]
        lines(f"1N_{name}.csv", iter(["TEMPLATE_ID,SUBJECT_ID,FILENAME", *rows]))
    count, genuine = int(PAIRS * scale), int(GENUINE * scale)
    probes = random.integers(subjects, templates, count)
    others = random.integers(0, subjects, count)
    others[: min(genuine, count)] = of_template[probes[: min(genuine, count)]]
    order = np.argsort(others, kind="stable")  # the official list goes through the galleries
    same = (others == of_template[probes]).astype(int)
    with (meta / "ijbc_template_pair_label.txt").open("w") as file:
        for start in range(0, count, 1 << 20):
            block = order[start : start + (1 << 20)]
            columns = others[block].tolist(), probes[block].tolist(), same[block].tolist()
            file.writelines(f"{a} {b} {s}\n" for a, b, s in zip(*columns))
    return of_template[of_image]


def write_embeddings(path: Path, of_image: np.ndarray) -> np.ndarray:
    random = np.random.default_rng(1)
    centers = random.standard_normal((of_image.max() + 1, WIDTH), np.float32)
    rows = np.memmap(path, np.float32, mode="w+", shape=(len(of_image), WIDTH))
    for start in range(0, len(of_image), 1 << 14):
        block = slice(start, start + (1 << 14))
        noise = random.standard_normal(rows[block].shape, np.float32)
        rows[block] = 20 * (centers[of_image[block]] / 4 + noise) / WIDTH**0.5
    rows.flush()
    return np.memmap(path, np.float32, mode="r", shape=rows.shape)


def opened(files: IjbFiles) -> Ijb:
    def none(_: object) -> None:
        raise AssertionError("no image is read here")

    return Ijb("ijbc", Images(files.names, none, none, 112, ""), files)


def measure(folder: Path, rows: np.ndarray, *, draws: int) -> tuple[Steps, IjbFiles]:
    steps = Steps()
    norms = np.concatenate(
        [np.linalg.norm(rows[i : i + 8192], axis=1) for i in range(0, len(rows), 8192)]
    )
    features = Features(rows, norms, {})
    with steps.step("read the lists"):
        files = read_ijb_files(folder, name="ijbc")
    ijb = opened(files)
    with steps.step("pool the templates"):
        templates, _ = pool(
            rows,
            files.members,
            templates=len(files.templates),
            kept=np.ones(len(rows), bool),
            weights=files.detector,
            unit=False,
        )
    pairs = files.pairs
    with steps.step("compare the pairs"):
        first, second = (templates, pairs.first), (templates, pairs.second)
        pair_products(first, second, threads=torch.get_num_threads())
    lists, subjects = files.one_to_many, files.subjects
    with steps.step("search in both galleries"):
        for gallery in lists.galleries:
            search(
                templates[lists.probes],
                templates[gallery],
                of_probe=subjects[lists.probes],
                of_entry=subjects[gallery],
            )
    with steps.step("scores of a run, all of it"):
        ijb.scores(features)
    with steps.step("result without intervals, all of it"):
        ijb.judge(features, model="m", asked=Asked(draws=0))
    if draws:
        with steps.step(f"result with {draws:,} draws, all of it"):
            ijb.judge(features, model="m", asked=Asked(draws=draws))
    return steps, files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0].rstrip(":"))
    parser.add_argument("--draws", type=int, default=1000, help="of the bootstrap (default 1000)")
    parser.add_argument("--scale", type=float, default=1.0, help="of IJB-C's size (default 1)")
    parser.add_argument("--folder", type=Path, help="where to write (default: temporary)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        of_image = write_lists(Path(scratch), arguments.scale)
        rows = write_embeddings(Path(scratch) / "rows", of_image)
        steps, files = measure(Path(scratch), rows, draws=arguments.draws)
    count = len(files.pairs.same)
    per_minute = count / steps.seconds["compare the pairs"] * 60
    show(
        ("", "s", "memory of its own, MB"),
        [(name, f"{s:.1f}", f"{steps.memory[name]:,.0f}") for name, s in steps.seconds.items()],
        title=f"{len(rows):,} images, {len(files.templates):,} templates, {count:,} pairs",
    )
    print(f"{per_minute / 1e6:,.0f} million pairs a minute")
    sizes = {"images": len(rows), "templates": len(files.templates), "pairs": count}
    save(
        "ijb_speed",
        about_cpu() | sizes,
        seconds={name: round(s, 2) for name, s in steps.seconds.items()},
        memory_mb={name: round(mb) for name, mb in steps.memory.items()},
        million_pairs_a_minute=round(per_minute / 1e6, 1),
    )


if __name__ == "__main__":
    main()
