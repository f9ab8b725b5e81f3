"""Faces of 64 pixels, decoded once and kept as arrays, for the short trainings of an experiment.

Drawn ones (see synthetic/), or those of a train.rec with a .bin of pairs beside it. Nothing of it
belongs into the repository: an experiment is given a folder for it.
"""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.lib.format import open_memmap
from PIL import Image

from evaluation.pair_set import read_bin
from pipeline.records.index import open_index
from synthetic import make_pairs, render

SIZE = 64


class Drawn(NamedTuple):
    """A set of drawn faces, and pairs of people that come after them, half as many.

    Attributes:
        name: of its files.
        images: of each identity.
    """

    name: str
    identities: int
    images: int
    pairs: int


MANY = Drawn("drawn", identities=20_000, images=4, pairs=12_000)


class Faces(NamedTuple):
    """What a network is trained and verified on.

    Attributes:
        images: (N, 64, 64, 3) uint8 RGB, perhaps mapped from a file.
        labels: (N,) int64, from 0 on.
        pairs: (2P, 64, 64, 3) uint8 RGB of people that are not among the labels; images 2k and
            2k + 1 are pair k.
        same: (P,) bool.
    """

    images: np.ndarray
    labels: np.ndarray
    pairs: np.ndarray
    same: np.ndarray

    @property
    def num_classes(self) -> int:
        return int(self.labels.max()) + 1

    def digest(self) -> str:
        """Of all of them."""
        digest = hashlib.sha256()
        for array in self:
            digest.update(np.ascontiguousarray(array))
        return digest.hexdigest()[:16]


def drawn_faces(folder: Path, drawn: Drawn = MANY) -> Faces:
    """Where the folder has none they are drawn, 35,000 images a minute and core."""
    images, pairs = folder / f"{drawn.name}.npy", folder / f"{drawn.name}_pairs.npy"
    people = range(drawn.identities, drawn.identities + drawn.identities // 2)
    chosen, same = make_pairs(people, pairs=drawn.pairs, seed=0)
    if not (images.exists() and pairs.exists()):
        folder.mkdir(parents=True, exist_ok=True)
        everyone = [
            (who, image) for who in range(drawn.identities) for image in range(drawn.images)
        ]
        with multiprocessing.get_context("spawn").Pool(len(os.sched_getaffinity(0))) as pool:
            for path, shots in ((pairs, chosen), (images, everyone)):
                _keep(path, pool.imap(_draw, shots, chunksize=64), count=len(shots))
    labels = np.repeat(np.arange(drawn.identities), drawn.images)
    return Faces(np.load(images, mmap_mode="r"), labels, np.load(pairs, mmap_mode="r"), same)


def real_faces(source: Path, folder: Path) -> Faces:
    """Those of SOURCE/train.rec, and the pairs of the .bin beside it, made smaller."""
    (tests,) = source.glob("*.bin")
    index, listed = open_index(source / "train.rec"), read_bin(tests)
    paths = folder / "real.npy", folder / "real_pairs.npy"
    encoded = (index.image(i).tobytes() for i in range(len(index))), listed.images
    for path, images, count in zip(paths, encoded, (len(index), len(listed.images))):
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            _keep(path, map(_decode, images), count=count)
    labels = index.labels(np.arange(len(index)))
    images, pairs = map(np.load, paths)
    return Faces(images, np.unique(labels, return_inverse=True)[1], pairs, listed.same)


def _draw(shot: tuple[int, int]) -> np.ndarray:
    return render(*shot, size=SIZE)


def _decode(encoded: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(encoded)) as image:
        smaller = image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    return np.asarray(smaller)


def _keep(path: Path, images: Iterable[np.ndarray], *, count: int) -> None:
    """Write them, (count, 64, 64, 3); the file has its name once it is whole."""
    unfinished = path.with_suffix(".unfinished")
    kept = open_memmap(unfinished, "w+", np.uint8, (count, SIZE, SIZE, 3))
    for place, image in enumerate(images):
        kept[place] = image
    kept.flush()
    unfinished.rename(path)
