"""1:N: a probe is searched for in a gallery, and whose entry comes out first?

A score is a cosine. Ties count against the probe: an entry of another person that scores as high as
the person's own stands before it, so that embeddings that are all alike find nobody.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch

NOBODY = -1  # in place of a person: one who is not searched for, or not in any gallery

_BLOCK = 1 << 24  # scores at a time: 64 MB


@dataclass(frozen=True)
class Searches:
    """What came of Q searches in one gallery.

    Attributes:
        mated: (Q,) bool, whether the probe's person is in the gallery.
        mate: (Q,) float32, the score of the best entry of the probe's person; -inf for none.
        rank: (Q,) int64, that entry's place in the list of candidates, from 1; 0 for none.
        other: (Q,) float32, the score of the best entry of anybody else; -inf for none.
        precision: (Q,) float64, the average precision over the entries of the probe's person; NaN
            for none.
        mate_entry, other_entry: (Q,) int64, the places of those two entries; -1 for none.
    """

    mated: np.ndarray
    mate: np.ndarray
    rank: np.ndarray
    other: np.ndarray
    precision: np.ndarray
    mate_entry: np.ndarray
    other_entry: np.ndarray

    def of(self, which: np.ndarray) -> Searches:
        """Some of them: (Q,) bool, or places."""
        return Searches(*(getattr(self, field.name)[which] for field in fields(self)))


def search(
    probes: np.ndarray, gallery: np.ndarray, *, of_probe: np.ndarray, of_entry: np.ndarray
) -> Searches:
    """Search for every probe in the whole gallery, in blocks of some 64 MB.

    Args:
        probes: (Q, D) float32, of unit length.
        gallery: (G, D) float32, of unit length.
        of_probe: (Q,) int64, the persons; NOBODY for one who is not in the gallery.
        of_entry: (G,) int64, the persons; NOBODY for a distractor. A person may have many entries.
    """
    order = np.argsort(of_entry, kind="stable")
    sought = of_entry[order]
    first = np.searchsorted(sought, of_probe)
    mates = np.where(of_probe == NOBODY, 0, np.searchsorted(sought, of_probe, side="right") - first)
    columns = torch.from_numpy(gallery).T
    height = max(1, _BLOCK // len(gallery))
    blocks = []
    for start in range(0, len(probes), height):
        rows = slice(start, start + height)
        scores = (torch.from_numpy(probes[rows]) @ columns).numpy()  # (b, G)
        entries = [order[f : f + n] for f, n in zip(first[rows], mates[rows])]
        blocks.append(_block(scores, entries))
    return Searches(mates > 0, *(np.concatenate(part) for part in zip(*blocks)))


def _block(scores: np.ndarray, entries: list[np.ndarray]) -> tuple[np.ndarray, ...]:
    """All but the first of Searches' arrays: scores (b, G), and the mates' entries of each row."""
    count = len(scores)
    mate, rank = np.full(count, -np.inf, np.float32), np.zeros(count, np.int64)
    precision, mate_entry = np.full(count, np.nan), np.full(count, -1)
    own: list[np.ndarray] = []
    for row, places in enumerate(entries):
        found = scores[row, places]
        own.append(np.sort(found)[::-1])
        if len(places):
            mate[row], mate_entry[row] = found.max(), places[found.argmax()]
        scores[row, places] = -np.inf
    other_entry = scores.argmax(axis=1)
    other = scores[np.arange(count), other_entry]
    other_entry[np.isneginf(other)] = -1
    for row in np.flatnonzero([len(found) for found in own]).tolist():
        # Of most probes the best mate is before everybody else's entry, and nothing is to count.
        ahead = np.array(
            [np.count_nonzero(scores[row] >= s) if s <= other[row] else 0 for s in own[row]]
        )
        places = ahead + np.arange(1, len(ahead) + 1)
        rank[row] = places[0]
        precision[row] = _average_precision(places)
    return mate, rank, other, precision, mate_entry, other_entry


def _average_precision(places: np.ndarray) -> float:
    """As TinyFace's own script has it: trapezoids below precision over recall.

    Args:
        places: (m,) rising, from 1: where the person's m entries stand in the list of candidates.
    """
    found = np.arange(1, len(places) + 1)
    before = np.where(places > 1, (found - 1) / np.maximum(places - 1, 1), 1.0)
    return float((before + found / places).mean() / 2)
