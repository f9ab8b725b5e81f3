"""Which way a figure is better, by its name."""

from __future__ import annotations

import pytest

from evaluation.figure_names import direction

FEWER_ERRORS = (
    "eer",
    "fnmr@fmr=0.001",
    "fnir@fpir=0.01, rank 20",
    "fmr at the common threshold",
    "fpir at the common threshold of fpir=0.1",
)


@pytest.mark.parametrize(
    ("name", "better"),
    [
        *((name, 1) for name in ("accuracy", "tar@far=0.001", "rank-1", "auc", "d′", "mAP")),
        *((name, -1) for name in FEWER_ERRORS),
        *((name, 0) for name in ("threshold", "norm", "accuracy_std", "threshold@far=0.001")),
    ],
)
def test_which_way_is_better(name, better):
    assert direction(name) == better
