"""Draws the people of comparisons again, since comparisons that share a person are not independent.

In each draw as many people are taken as there are, with replacement. A comparison counts as often
as its people were drawn: an impostor pair by the product of its two people's numbers, a genuine
pair or a search by the number of its one person (two copies of one person drawn twice are two
people; squaring it would widen the intervals of genuine pairs by two thirds).

The product counts what is a pair's own chance, beside what its two people bring, three times: for
numbers of mean 1 and variance 1 the variance of a product is 3 where the covariance of two products
that share one factor is 1, as it must be (Owen and Eckles, Bootstrapping data arrays of arbitrary
order, 2012). In a list such as LFW's, where most people stand in one pair or two, the intervals
would be 1.3 to 1.7 times too wide. So a second bootstrap draws the pairs of people alone, and
evaluation/metrics/intervals.py takes its spread off.

Where people are not known, images are drawn in their place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from evaluation.metrics.intervals import Spread

WORD = 64  # draws that are usually made at a time
CELLS = 4  # a comparison, up to which all pairs of clusters are numbered, seen or not
MOST_TIMES = 15  # a person comes in one draw: its square still is a uint8; 16 come once in 10¹³


class Weights(Protocol):
    """How often comparisons count in some draws; called, it gives (draws, n) float32 for places."""

    def rows(self, places: np.ndarray) -> np.ndarray:
        """(n, draws) uint8 of comparisons at places (n,)."""

    def __call__(self, places: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class Clusters:
    """Who stands in each of P comparisons.

    Attributes:
        first, second: (P,) integers below `count`; `second` is `count` where a comparison has one
            person alone.
        count: how many people, or images, there are.
        kind: "people" or "images".
    """

    first: np.ndarray
    second: np.ndarray
    count: int
    kind: str

    @classmethod
    def of_pairs(
        cls, first: np.ndarray, second: np.ndarray, people: np.ndarray | None = None
    ) -> Clusters:
        """Of pairs of images first, second (P,), which show people (N,) where that is known."""
        images = 1 + max(first.max(), second.max())
        shown = np.zeros(images, bool)
        shown[first] = shown[second] = True
        # Images are few beside pairs, which are not to be sorted.
        whom = np.arange(images) if people is None else people[:images]
        known, numbers = np.unique(whom[shown], return_inverse=True)
        number = np.zeros(images, np.int32)
        number[shown] = numbers
        a, b = number[first], number[second]
        b[a == b] = len(known)
        return cls(a, b, len(known), "images" if people is None else "people")

    @classmethod
    def of_searches(cls, people: np.ndarray) -> Clusters:
        """Of searches (S,), each for the person whom its probe shows: integers."""
        known, numbers = np.unique(people, return_inverse=True)
        return cls(numbers, np.full(len(people), len(known)), len(known), "people")

    def apart(self, chosen: np.ndarray) -> int:
        """How many of the chosen comparisons, (P,) bool, surely could be made with nobody in two.

        No more than one a person who stands alone, and one for each two of the others.
        """
        alone = chosen & (self.second == self.count)
        both = chosen & ~alone
        people, one, other = np.zeros((3, self.count), bool)
        people[self.first[alone]] = True
        one[self.first[both]] = other[self.second[both]] = True
        return int(people.sum()) + min(int(both.sum()), int((one | other).sum()) // 2)


def bootstrap(
    figures: Callable[[Weights], Mapping[str, np.ndarray]],
    clusters: Clusters,
    *,
    draws: int,
    seed: int,
    at_once: int = WORD,
) -> dict[str, Spread]:
    """The spread of every figure over seeded draws: the same draws for the same clusters.

    Args:
        figures: makes, of the weights that its argument gives for places, figures by name, each
            (draws, ...).
        draws: at least 2.
        at_once: draws that `figures` is asked for at a time.
    """
    whole = figures(Once())
    drawn = [figures(weigh) for weigh in _of_clusters(clusters, draws, at_once, seed)]
    if (clusters.second == clusters.count).all():  # searches: no pair to draw
        own = [whole] * draws
    else:
        own = [figures(weigh) for weigh in _of_pairs(clusters, draws, at_once, seed)]
    return {
        name: Spread.around(
            value,
            drawn=np.concatenate([block[name] for block in drawn]),
            own=np.concatenate([block[name] for block in own]),
            clusters=clusters.count,
        )
        for name, value in whole.items()
    }


class Once:
    """Every comparison once, in a single draw."""

    def rows(self, places: np.ndarray) -> np.ndarray:
        return np.ones((len(places), 1), np.uint8)

    def __call__(self, places: np.ndarray) -> np.ndarray:
        return np.ones((1, len(places)), np.float32)


@dataclass(frozen=True)
class _Drawn:
    """Clusters as often as they were drawn: numbers (clusters + 1, draws) uint8."""

    clusters: Clusters
    numbers: np.ndarray

    def rows(self, places: np.ndarray) -> np.ndarray:
        rows = self.numbers.take(self.clusters.first[places], axis=0)
        rows *= self.numbers.take(self.clusters.second[places], axis=0)
        return rows

    def __call__(self, places: np.ndarray) -> np.ndarray:
        return self.rows(places).T.astype(np.float32)


@dataclass(frozen=True)
class _OwnDrawn:
    """Pairs of clusters not at all or twice, by bits; the comparisons of one alone always once.

    Attributes:
        pair: (P,) which pair of clusters a comparison is of.
        bits: (pairs, draws / 8, rounded up) uint8.
    """

    pair: np.ndarray
    alone: np.ndarray
    bits: np.ndarray
    draws: int

    def rows(self, places: np.ndarray) -> np.ndarray:
        rows = np.unpackbits(self.bits.take(self.pair[places], axis=0), axis=1, count=self.draws)
        rows <<= 1
        rows[self.alone[places]] = 1
        return rows

    def __call__(self, places: np.ndarray) -> np.ndarray:
        return self.rows(places).T.astype(np.float32)


def _of_clusters(clusters: Clusters, draws: int, at_once: int, seed: int) -> Iterator[Weights]:
    random = np.random.default_rng((seed, 0))
    count = clusters.count
    for start in range(0, draws, at_once):
        held = min(at_once, draws - start)
        taken = random.integers(0, count, (held, count)) * held + np.arange(held)[:, None]
        numbers = np.bincount(taken.ravel(), minlength=(count + 1) * held)
        numbers[count * held :] = 1  # beside those who are alone
        numbers = np.minimum(numbers, MOST_TIMES).astype(np.uint8)
        yield _Drawn(clusters, numbers.reshape(count + 1, held))


def _of_pairs(clusters: Clusters, draws: int, at_once: int, seed: int) -> Iterator[Weights]:
    random = np.random.default_rng((seed, 1))
    pair, count = _pairs_of_clusters(clusters)
    alone = clusters.second == clusters.count
    for start in range(0, draws, at_once):
        held = min(at_once, draws - start)
        bits = random.integers(0, 256, (count, -(-held // 8)), np.uint8)
        yield _OwnDrawn(pair, alone, bits, held)


def _pairs_of_clusters(clusters: Clusters) -> tuple[np.ndarray, int]:
    """(P,) int32, the number of the pair of clusters of each comparison; and how many there are."""
    width = clusters.count + 1
    cell = np.minimum(clusters.first, clusters.second).astype(np.int64)
    cell *= width
    cell += np.maximum(clusters.first, clusters.second)
    if width**2 > CELLS * len(cell):
        known, pair = np.unique(cell, return_inverse=True)
        return pair.astype(np.int32), len(known)
    # The same without sorting millions of comparisons.
    number = np.zeros(width**2, np.int32)
    number[cell] = 1
    np.cumsum(number, out=number)
    return number[cell] - 1, int(number[-1])
