"""Charts as pixels: colors, sizes, names with signs that matplotlib would read as formulas."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from evaluation.report.picture import roc_picture, scores_picture
from tests.evaluation.report import made_up


@pytest.mark.parametrize("name", ["r50", "_hidden", r"$\frac{$", "東京\x00"])
def test_a_roc_has_its_line_and_its_band(name):
    picture = roc_picture([made_up.result(name, "lfw")])
    assert picture.dtype == np.uint8
    assert picture.ndim == 3
    assert picture.shape[2] == 3
    line = (picture == (0x1F, 0x5F, 0xAE)).all(axis=2)
    assert line.sum() > 200


def test_scores_of_both_kinds_are_drawn():
    picture = scores_picture(made_up.result("r50", "lfw"))
    for color in ((0x0B, 0x75, 0x80), (0x7A, 0x7F, 0x88)):
        assert (picture == color).all(axis=2).sum() > 100


def test_without_curves_there_is_no_picture():
    bare = replace(made_up.result("r50", "lfw"), curves={})
    assert roc_picture([bare]) is None
    assert scores_picture(bare) is None
    assert roc_picture([]) is None
