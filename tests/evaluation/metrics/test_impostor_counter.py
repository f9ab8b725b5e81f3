from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from evaluation.metrics.impostor_counter import ImpostorCounter
from evaluation.metrics.roc import Roc

few = st.integers(-8, 8).map(lambda value: value / 8)


@settings(max_examples=200, deadline=None)
@given(
    hnp.arrays(np.float32, st.integers(1, 30), elements=few),
    hnp.arrays(np.float32, st.integers(1, 60), elements=few),
    st.sampled_from([0.0, 0.1, 0.3, 0.8]),
)
def test_counting_in_blocks_gives_what_all_scores_give(
    genuine: np.ndarray, impostors: np.ndarray, limit: float
) -> None:
    """With ties between and within both kinds, on two ranks whose counts are summed."""
    ranks = [ImpostorCounter(genuine), ImpostorCounter(genuine[::-1])]
    for i, block in enumerate(np.array_split(impostors, 5)):
        ranks[i % 2].add(block)
    ranks[0].counts += ranks[1].counts
    counted = ranks[0].roc()
    whole = Roc.of(
        np.r_[genuine, impostors], np.arange(len(genuine) + len(impostors)) < len(genuine)
    )
    assert counted.auc == pytest.approx(whole.auc, abs=1e-12)
    assert counted.eer == pytest.approx(whole.eer, abs=1e-12)
    assert counted.best_accuracy == whole.best_accuracy
    assert counted.tar_at_far(limit) == whole.tar_at_far(limit)
    threshold = float(counted.threshold_at_far(limit))
    assert threshold == whole.threshold_at_far(limit)
    assert counted.rates_at(threshold) == whole.rates_at(threshold)


def test_memory_is_that_of_the_genuine_scores() -> None:
    counter = ImpostorCounter(np.float32([0.5, 0.7, 0.5]))
    for seed in range(5):
        counter.add(np.random.default_rng(seed).random(1000, np.float32))
    assert counter.counts.shape == (5,)
    assert counter.counts.sum() == 5000


def test_what_cannot_be_counted_is_refused() -> None:
    with pytest.raises(ValueError, match="no genuine pairs"):
        ImpostorCounter(np.empty(0))
    with pytest.raises(ValueError, match="1 of 2 scores are not finite"):
        ImpostorCounter(np.array([np.nan, 0.1]))
    counter = ImpostorCounter(np.array([0.4]))
    with pytest.raises(ValueError, match="1 of 2 scores are not finite"):
        counter.add(np.array([np.inf, 0.1]))
    with pytest.raises(ValueError, match="no impostor pairs"):
        counter.roc()
