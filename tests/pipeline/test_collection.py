"""Several files as one set: labels, names, what is left out, how often each is seen."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.collection import Collection, dense_labels, stack_labels
from pipeline.identity_map import read_identity_map, read_identity_names
from pipeline.named_path import PathError
from pipeline.order import GlobalOrder, WeightedOrder
from pipeline.record_filter import read_filter
from pipeline.records.index import RecordIndex, open_index
from pipeline.records.recordio import RecordError, RecordWriter, pack_image


def write_set(folder: Path, labels: list[int]) -> RecordIndex:
    """An image's bytes say which set, record and label it is."""
    folder.mkdir(parents=True)
    with RecordWriter(folder / "train.rec") as writer:
        for number, label in enumerate(labels):
            image = f"{folder.name} {number} {label}".encode()
            writer.write(pack_image(image, float(label), number))
    return open_index(folder)


@pytest.fixture
def indexes(tmp_path) -> list[RecordIndex]:
    return [write_set(tmp_path / "a", [0, 0, 2]), write_set(tmp_path / "b", [1, 0, 0, 1])]


def contents(collection: Collection) -> list[str]:
    return [source().decode() for source in collection.sources(np.arange(len(collection)))]


def test_files_follow_one_another_with_labels_of_their_own(indexes):
    collection = Collection(indexes, stack_labels(indexes), [None, None])
    assert contents(collection) == ["a 0 0", "a 1 0", "a 2 2", "b 0 1", "b 1 0", "b 2 0", "b 3 1"]
    # The first file's labels go up to 2: 1 has no image and keeps its place.
    assert collection.labels(np.arange(7)).tolist() == [0, 0, 2, 4, 3, 3, 4]
    assert collection.labels(np.array([6, 0, 3])).tolist() == [4, 0, 4]
    assert collection.num_classes == 5
    assert f"{indexes[1].path}: the image of the record at offset" in collection.describe(3)


def test_dense_labels_have_no_gaps_and_keep_their_order(indexes):
    stacked, kept = stack_labels(indexes), [None, np.array([1, 2])]  # b's label 1 is left out
    dense = dense_labels(indexes, stacked, kept)
    assert [labels.tolist() for labels in dense] == [[0, -1, 1], [2, -1]]
    collection = Collection(indexes, dense, kept)
    assert collection.labels(np.arange(5)).tolist() == [0, 0, 1, 2, 2]
    assert collection.num_classes == collection.count_identities() == 3
    assert Collection(indexes, stacked, kept).count_identities() == 3


def test_ids_as_labels_become_a_handful_of_classes(tmp_path):
    index = write_set(tmp_path / "ids", [4_000_005, 4_000_001, 4_000_005])
    dense = dense_labels([index], stack_labels([index]), [None])
    assert Collection([index], dense, [None]).labels(np.arange(3)).tolist() == [1, 0, 1]
    [line] = Collection.of(index).summary_lines()
    assert line.endswith("3 images of 2 identities, labels up to 4000005")


@pytest.mark.parametrize("form", ["csv", "json"])
def test_a_name_in_two_files_is_one_person(indexes, tmp_path, form):
    path = tmp_path / f"people.{form}"
    if form == "csv":
        path.write_text("file,label,identity\na,0,zoe\na,2,ann\nb,1,ann\n")
    else:
        path.write_text(json.dumps({"a": {"0": "zoe", "2": "ann"}, "b": {"1": "ann"}}))
    labels = read_identity_map(path, indexes)
    collection = Collection(indexes, labels, [None, None])
    # ann 0, zoe 1; then a's label 1 and b's label 0, which the map does not name.
    assert collection.labels(np.arange(7)).tolist() == [1, 1, 0, 0, 3, 3, 0]
    assert collection.num_classes == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na,0\n", "columns .*expected file, label, identity"),
        ("file,label,identity\nc,0,ann\n", "line 2: 'c' names none"),
        ("file,label,identity\ntrain.rec,0,ann\n", "'train.rec' names none or several"),
        ("file,label,identity\na,7,ann\n", "line 2: label 7 of a, expected one from 0 to 2"),
        ("file,label,identity\na,x,ann\n", "line 2: label 'x', expected a whole number"),
        ("file,label,identity\na,1,\n", "line 2: label 1 of a has no identity: expected a name"),
        (
            "file,label,identity\na,1,ann\na,1,ann\na,1,zoe\n",
            "line 4: label 1 of a is zoe here and ann before: expected one identity",
        ),
        ("file,label,identity\na,1\n", "line 2: fewer columns than the 3 of the first line"),
        ("file,label,identity\na,1,Doe, Ann\n", "line 2: more columns than the 3.*in quotes"),
        ("file,label,identity\na,1," + "x" * 200_000, "line 1: field larger than field limit"),
    ],
)
def test_a_wrong_map_is_named(indexes, tmp_path, text, message):
    path = tmp_path / "people.csv"
    path.write_text(text)
    with pytest.raises(RecordError, match=message):
        read_identity_map(path, indexes)
    path = tmp_path / "people.json"
    path.write_text('["a"]')
    with pytest.raises(RecordError, match=r"expected \{file: \{label: identity\}\}"):
        read_identity_map(path, indexes)


@pytest.mark.parametrize("name", ["people.csv", "people.json", "drop.txt"])
def test_a_list_in_another_encoding_is_named(indexes, tmp_path, name):
    path = tmp_path / name
    path.write_bytes("file,label,identity\na,0,Zoé\n".encode("latin-1"))
    read = read_filter if name == "drop.txt" else read_identity_map
    with pytest.raises(PathError, match=rf"{name} is not text: .*Save it as UTF-8"):
        read(path, indexes)


def test_identities_named_by_numbers_are_numbered_in_their_order(indexes, tmp_path):
    path = tmp_path / "people.json"
    path.write_text('{"a": {"0": 10, "2": "9"}, "b": {"1": 9}}')
    assert [labels.tolist() for labels in read_identity_map(path, indexes)] == [[1, 2, 0], [3, 0]]
    assert read_identity_names(path, indexes) == [{0: "10", 2: "9"}, {1: "9"}]


@pytest.mark.parametrize("text", ['{"a": {"0": "x", "0": "y"}}', '{"a": {}, "a": {"0": "y"}}'])
def test_what_stands_in_json_twice_is_refused(indexes, tmp_path, text):
    path = tmp_path / "people.json"
    path.write_text(text)
    with pytest.raises(RecordError, match=r"identity\}\}; '[a0]' stands there twice"):
        read_identity_map(path, indexes)


def test_a_name_in_json_is_a_text_or_a_number(indexes, tmp_path):
    path = tmp_path / "people.json"
    path.write_text('{"a": {"0": null}}')
    with pytest.raises(RecordError, match=r"people\.json, a, 0: found null, expected a name"):
        read_identity_map(path, indexes)


def test_what_a_list_names_is_left_out(indexes, tmp_path):
    path = tmp_path / "drop.txt"
    offset = indexes[1].records["offset"][2]
    path.write_text(f"# bad ones\na identity 0\n\n{indexes[1].path} record {offset}  # blurred\n")
    kept = read_filter(path, indexes)
    collection = Collection(indexes, stack_labels(indexes), kept)
    assert contents(collection) == ["a 2 2", "b 0 1", "b 1 0", "b 3 1"]
    assert collection.labels(np.arange(4)).tolist() == [2, 4, 3, 4], "labels keep their numbers"
    assert collection.counts == (1, 3)
    (alone,) = read_filter(path.write_text("identity 2\n") and path, indexes[:1])
    assert alone.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a person 3", "line 1: found 'a person 3', expected `identity LABEL`"),
        ("a identity x", "expected `identity LABEL` or `record OFFSET`"),
        ("identity", "expected `identity LABEL` or `record OFFSET`"),
        (
            "identity 0",
            "line 1: found .identity 0., expected the file in front, as there are 2 files",
        ),
        ("a identity ²", "expected `identity LABEL` or `record OFFSET`"),
        ("a identity 1", "a/train.rec has no image of identity 1"),
        ("b record 3", "b/train.rec has no image of record 3"),
    ],
)
def test_a_wrong_list_is_named(indexes, tmp_path, line, message):
    path = tmp_path / "drop.txt"
    path.write_text(line + "\n")
    with pytest.raises(RecordError, match=message):
        read_filter(path, indexes)


@pytest.mark.parametrize("shown", [(10, 20), (5, 20), (30, 4), (13, 31), (0, 20)])
def test_sets_are_seen_as_often_as_they_weigh(shown):
    counts = (10, 20)
    order = WeightedOrder(GlobalOrder(sum(shown), seed=0), counts=counts, shown=shown)
    epochs = 60
    seen = np.zeros(30, np.int64)
    for epoch in range(epochs):
        records = order(np.arange(sum(shown)), epoch)
        assert (records < 10).sum() == shown[0]
        seen += np.bincount(records, minlength=30)
    for part, count, times in ((seen[:10], 10, shown[0]), (seen[10:], 20, shown[1])):
        assert part.max() - part.min() <= 1
        assert part.sum() == epochs * times
        assert abs(part.mean() - epochs * times / count) < 1e-9


def test_digests_tell_what_is_kept_and_as_whose(indexes):
    """Of one file: all, all but one, and with two labels exchanged."""
    index = indexes[0]
    labels = np.arange(index.summary.num_classes)
    exchanged = labels.copy()
    exchanged[:2] = exchanged[1::-1]
    collections = [
        Collection([index], [labels], [None]),
        Collection([index], [labels], [np.arange(1, len(index))]),
        Collection([index], [exchanged], [None]),
    ]
    assert len({one.digest() for one in collections}) == 3
    assert Collection([index], [labels.copy()], [None]).digest() == collections[0].digest()
