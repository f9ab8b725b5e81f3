"""Pairs drawn from a folder of people: a test set for who has photos and no protocol.

No person is to dominate the figures, whoever has thousands of photos: genuine pairs are shared out
evenly over the people, up to a limit for each, and everybody is in as many impostor pairs as any
other, within one or two. There are as many genuine as impostor pairs, in a drawn order.
"""

from __future__ import annotations

import os
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np

from evaluation.protocols.pair_lists import PairList, PairListError
from pipeline.counter import bits, key, word
from pipeline.named_path import as_text, check_path, is_folder
from pipeline.photos import SUFFIXES

PER_PERSON = 50  # genuine pairs
_VAIN = 50  # rounds without an impostor pair that is not there already: there are no more
_EXPECTED = "expected a folder a person, two images at least in one of them, and two people"


def draw_pairs(
    folder: str | Path, *, pairs: int = 6000, per_person: int = PER_PERSON, seed: int = 0
) -> PairList:
    """Genuine and impostor pairs, half and half, the same for the same names and seed.

    Args:
        folder: of folders, one a person, which hold images.
        pairs: to draw in all; there are fewer where the people have fewer.
        per_person: genuine pairs of one person at most.

    Raises:
        PathError: a folder that cannot be opened.
        PairListError: a folder of fewer than two people, or without two images of anybody.
    """
    assert pairs > 1, pairs
    assert per_person > 0, per_person
    folder = Path(folder)
    check_path(folder, called=str(folder), expected="a folder of people", file=False, folder=True)
    names, files = _people(folder)
    if len(files) < 2 or max(map(len, files)) < 2:
        raise PairListError(
            f"{folder} holds {len(files)} folders with images, the largest of "
            f"{max(map(len, files), default=0)}: {_EXPECTED}"
        )
    owner = np.repeat(np.arange(len(files)), [len(of) for of in files])
    starts = np.cumsum([0, *map(len, files)])
    genuine = _genuine(starts, most=pairs // 2, per_person=per_person, seed=seed)
    impostor = _impostors(starts, most=len(genuine), seed=seed)
    each = min(len(genuine), len(impostor))
    genuine = [genuine[i] for i in _shuffled(len(genuine), seed, "of genuine pairs")[:each]]
    drawn = np.array(genuine + impostor, np.int64)  # (2 * each, 2) places in all images
    order = _shuffled(2 * each, seed, "order")
    drawn, same = drawn[order], np.repeat([True, False], each)[order]
    used = np.unique(drawn)
    images = [path for of in files for path in of]
    first, second = np.searchsorted(used, drawn).T
    people = [as_text(names[owner[place]]) for place in used]
    return PairList([images[place] for place in used], first, second, same, people)


def _people(folder: Path) -> tuple[list[str], list[list[Path]]]:
    """The names of the folders that hold images, and these, all in the order of their names."""
    names, files = [], []
    with os.scandir(folder) as entries:
        inside = sorted(entry.name for entry in entries if is_folder(entry))
    for name in inside:
        if name.startswith("."):
            continue
        with os.scandir(folder / name) as entries:
            images = sorted(
                entry.name
                for entry in entries
                if not entry.name.startswith(".")
                and os.path.splitext(entry.name)[1].lower() in SUFFIXES
                and entry.is_file()
            )
        if images:
            names.append(name)
            files.append([folder / name / image for image in images])
    return names, files


def _genuine(starts: np.ndarray, *, most: int, per_person: int, seed: int) -> list[tuple[int, int]]:
    count = np.diff(starts)
    quotas = _shared_out(np.minimum(count * (count - 1) // 2, per_person), most, seed)
    drawn = []
    for person, quota in enumerate(quotas):
        # So many pairs touch no more images than these.
        some = _shuffled(count[person], seed, "images", person)[: 2 * quota]
        possible = list(combinations(sorted(starts[person] + some), 2))
        drawn += [possible[i] for i in _shuffled(len(possible), seed, "pairs", person)[:quota]]
    return drawn


def _shared_out(possible: np.ndarray, most: int, seed: int) -> np.ndarray:
    """What each person gives: as evenly as what is possible allows, `most` in all."""
    level = 0
    while (quotas := np.minimum(possible, level)).sum() < min(most, possible.sum()):
        level += 1
    highest = np.flatnonzero(quotas == level)
    spared = _shuffled(len(highest), seed, "spared")[: max(quotas.sum() - most, 0)]
    quotas[highest[spared]] -= 1
    return quotas


def _impostors(starts: np.ndarray, *, most: int, seed: int) -> list[tuple[int, int]]:
    """Round after round everybody meets somebody, with an image of each."""
    count = np.diff(starts).tolist()
    met: Counter[tuple[int, int]] = Counter()
    drawn: list[tuple[int, int]] = []
    turn = vain = 0
    while len(drawn) < most and vain < _VAIN:
        vain += 1
        people = _shuffled(len(count), seed, "people", turn).tolist()
        for one, other in zip(people[::2], people[1::2]):
            one, other = sorted((one, other))
            times = met[one, other]
            if len(drawn) == most or times == count[one] * count[other]:
                continue  # there is no pair of theirs left
            met[one, other] += 1
            # From a drawn beginning on, all pairs of images of these two come once.
            begin = word(seed, "meeting", one, other)
            own = begin + times
            others = (begin >> 32) + times % count[one] + times // count[one]
            drawn.append(
                (int(starts[one] + own % count[one]), int(starts[other] + others % count[other]))
            )
            vain = 0
        turn += 1
    return drawn


def _shuffled(count: int, *words: int | str) -> np.ndarray:
    return np.argsort(bits(key(*words), np.arange(count)), kind="stable")
