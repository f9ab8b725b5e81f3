"""What cleaning says where it finds nothing: why, and no threshold that no cosine can pass."""

from dataclasses import replace

import numpy as np
import pytest

from evaluation.people.cleaning import clean
from evaluation.people.cleaning_report import Report
from pipeline.records.index import open_index
from pipeline.records.write_set import pack_set
from synthetic import encode_jpeg, render
from tests.evaluation.people.crowd import crowd

PEOPLE, IMAGES = 20, 6


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A set without a wrong label, and what cleaning finds in it."""
    rows, labels = crowd(PEOPLE, IMAGES)
    folder = tmp_path_factory.mktemp("clean")
    image = [encode_jpeg(render(k, 0, size=32)) for k in range(len(rows))]
    pack_set(folder, [[image[k] for k in np.flatnonzero(labels == one)] for one in range(PEOPLE)])
    index = open_index(folder)
    return index, clean(index, rows, threads=1)


def test_no_wrong_label_is_no_threshold(found):
    index, cleaning = found
    nothing = replace(cleaning.mislabeled, suspects=np.empty(0, np.int64), threshold=-np.inf)
    said = Report(index, replace(cleaning, mislabeled=nothing)).summary()
    assert said["wrong labels"].startswith("none is left out: hardly any is wrong")


@pytest.mark.parametrize(
    ("threshold", "said"),
    [(0.6, "0 pairs of labels"), (1.015, "none can be found"), (np.inf, "not known")],
)
def test_a_threshold_that_no_cosine_can_pass_is_said_in_words(found, threshold, said):
    index, cleaning = found
    twins = replace(cleaning.twins, threshold=threshold)
    assert Report(index, replace(cleaning, twins=twins)).summary()["same people"].startswith(said)
