"""How often a stranger comes as near as that: the expected false rate of a threshold.

The nearest of all those that a face is compared with may be the same person; the second and third
nearest are strangers. In the tail of a distribution the nearest stranger is further out than the
second by as much as the second than the third, doubled, on average, and by an exponential law. So
how near strangers come is known from the very comparison that is judged, whoever the nearest are.
Where the nearest is the same person indeed, the second is the nearest stranger already: that errs
to the safe side. Where a person is there three times, the second is no stranger either; it is
beyond the threshold, and does not count.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FEWEST = 20  # faces that a rate can be estimated from
_THRICE = 0.05  # share of faces that may be of people who are there three times


@dataclass(frozen=True)
class Strangers:
    """Where the nearest stranger of each face is expected.

    Attributes:
        second: (n,) cosines with the second nearest.
        scale: the difference of cosine over which strangers become e times rarer.
    """

    second: np.ndarray
    scale: float

    @classmethod
    def of(cls, nearest: np.ndarray) -> Strangers:
        """From (n, 3) cosines of n ≥ FEWEST faces with the nearest three, falling."""
        assert len(nearest) >= FEWEST
        gaps = nearest[:, 1].astype(float) - nearest[:, 2]
        return cls(nearest[:, 1].astype(float), max(2 * float(gaps.mean()), 1e-6))

    def expected(self, threshold: float) -> float:
        """The share of faces whose nearest stranger is expected above the threshold."""
        return self._expected(threshold, self.second[self.second <= threshold])

    def threshold(self, rate: float) -> float:
        """The threshold above which the nearest stranger of a share of `rate` is expected."""
        strangers = self.second[self.second <= np.quantile(self.second, 1 - _THRICE)]
        found = self._solve(rate, strangers)
        # Those left out above that are below the threshold were strangers all the same.
        while (more := int((self.second <= found).sum())) > len(strangers):
            strangers = np.sort(self.second)[:more]
            found = self._solve(rate, strangers)
        return found

    def _expected(self, threshold: float, strangers: np.ndarray) -> float:
        beyond = np.maximum(threshold - strangers, 0) / self.scale
        return float(np.exp(-beyond).sum()) / len(self.second)

    def _solve(self, rate: float, strangers: np.ndarray) -> float:
        low, high = -1.0, 1.0 + self.scale * float(np.log(1 / rate))
        for _ in range(50):
            middle = (low + high) / 2
            above = self._expected(middle, strangers) > rate
            low, high = (middle, high) if above else (low, middle)
        return high
