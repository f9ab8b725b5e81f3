from __future__ import annotations

import numpy as np
import pytest

from evaluation.metrics import shares
from evaluation.metrics.shares import Share, weighted_shares


def test_a_share_is_of_what_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weighted a few at a time, against one comparison after another."""
    monkeypatch.setattr(shares, "AT_ONCE", 7)
    rng = np.random.default_rng(0)
    counted, hit = rng.random(40) < 0.6, rng.random(40) < 0.3
    weights = rng.integers(0, 3, (5, 40)).astype(np.float32)
    found = weighted_shares({"x": Share(counted, hit)}, lambda places: weights[:, places])["x"]
    for draw, row in enumerate(weights):
        whole = sum(w for w, c in zip(row, counted) if c)
        hits = sum(w for w, c, h in zip(row, counted, hit) if c and h)
        assert found[draw] == pytest.approx(hits / whole)
    assert Share(counted, hit).point == pytest.approx((counted & hit).sum() / counted.sum())


def test_a_share_of_nothing_is_no_number() -> None:
    nothing = Share(np.zeros(3, dtype=bool), np.ones(3, dtype=bool))
    assert np.isnan(nothing.point)
    assert np.isnan(
        weighted_shares({"x": nothing}, lambda places: np.ones((2, len(places))))["x"]
    ).all()
