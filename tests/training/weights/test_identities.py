"""Who a head's classes are: found again by file or by name, and never by a mere number."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pipeline.collection import Collection, dense_labels, stack_labels
from pipeline.identity_map import read_identity_map
from pipeline.records.index import open_index
from tests.training.people import write_people
from training.weights.identities import (
    FILE,
    Identities,
    IdentitiesError,
    read_identities,
    write_identities,
)


def people(names: dict[int, str], files: dict[str, list[int]], num_classes: int) -> Identities:
    return Identities(num_classes, {f: np.array(labels) for f, labels in files.items()}, names)


def test_a_name_finds_its_row_unless_two_have_it():
    old = people({0: "ann", 1: "bob", 2: "cyd", 3: "cyd"}, {}, 5)
    new = people({0: "dan", 1: "cyd", 2: "bob", 3: "ann", 4: "ann"}, {}, 6)
    assert new.rows_from(old).tolist() == [-1, -1, 1, 0, 0, -1]


def test_a_label_of_the_same_file_counts_more_than_a_name():
    old = people({0: "ann", 1: "bob"}, {"a": [0, 1], "b": [2, 3, 2]}, 4)
    new = people({1: "ann", 4: "bob"}, {"b": [3, 0, 3], "c": [1, 4]}, 5)
    assert new.rows_from(old).tolist() == [3, 0, -1, 2, 1]


def test_those_of_a_set_are_by_the_names_of_manifests_and_of_the_identity_map(tmp_path):
    one, two = (
        open_index(write_people(tmp_path / name, names, images=1))
        for name, names in [("a", ("ann", "007", "cyd")), ("b", ("bob", "ann"))]
    )
    stacked = Collection([one, two], stack_labels([one, two]), [None, None])
    found = Identities.of(stacked, num_classes=6)
    assert found.names == {0: "ann", 2: "cyd", 3: "bob", 4: "ann"}, "digits name nobody"
    assert [labels.tolist() for labels in found.files.values()] == [[0, 1, 2], [3, 4]]
    listed = tmp_path / "map.csv"
    listed.write_text("file,label,identity\na,1,James\nb,1,Zoe\na,0,Zoe\n")
    joined = Collection([one, two], read_identity_map(listed, [one, two]), [None, None])
    found = Identities.of(joined, num_classes=joined.num_classes, identity_map=listed)
    assert found.names == {0: "James", 1: "Zoe", 2: "cyd", 3: "bob"}
    assert [labels.tolist() for labels in found.files.values()] == [[1, 0, 2], [3, 1]]
    kept = [np.array([0, 2]), None]  # James is left out
    dense = Collection([one, two], dense_labels([one, two], joined.label_maps, kept), kept)
    found = Identities.of(dense, num_classes=dense.num_classes, identity_map=listed)
    assert found.names == {0: "Zoe", 1: "cyd", 2: "bob"}


def test_labels_that_are_no_class_take_no_row_and_have_no_name():
    """As data.labels=dense makes them of labels that no image has."""
    old = people({}, {"a": [0, -1, 1]}, 2)
    new = people({}, {"a": [0, 1, -1]}, 2)
    assert new.rows_from(old).tolist() == [0, -1]
    assert old.followed_by(old).files["a"].tolist() == [0, -1, 1]
    assert people({}, {}, 5).followed_by(old).files["a"].tolist() == [5, -1, 6]


def test_they_follow_one_another():
    old = people({0: "ann"}, {"a": [0, 1]}, 2)
    both = old.followed_by(people({1: "bob"}, {"b": [1, 0]}, 2))
    assert both.num_classes == 4
    assert both.names == {0: "ann", 3: "bob"}
    assert {f: labels.tolist() for f, labels in both.files.items()} == {"a": [0, 1], "b": [3, 2]}


def test_what_is_written_is_read_from_a_run_or_a_checkpoint(tmp_path):
    checkpoint = tmp_path / "checkpoints" / "step_000000001"
    checkpoint.mkdir(parents=True)
    assert read_identities(checkpoint) is None
    of_run = people({0: "zoë", 2: "\udcff"}, {"a": [0, 2]}, 3)
    write_identities(tmp_path, of_run)
    assert read_identities(checkpoint).as_dict() == of_run.as_dict()
    own = people({}, {"b": [0]}, 1)
    write_identities(checkpoint, own)
    assert read_identities(checkpoint).as_dict() == own.as_dict()


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", json.dumps({"classes": 1, "files": [], "names": {}})]
)
def test_a_damaged_list_is_named(tmp_path, content):
    (tmp_path / FILE).write_text(content)
    with pytest.raises(IdentitiesError, match=r"identities\.json does not say whose .* Restore it"):
        read_identities(tmp_path)
