"""Labels of numbers and of names; files that are read by place."""

from __future__ import annotations

import pytest

from facestream import UserError
from pipeline.containers import stored
from pipeline.containers.stored import OpenFiles, folder_labels, labels_of, state_of
from pipeline.records.recordio import RecordError


def test_numbers_stay_and_names_are_numbered_as_pack_rec_numbers_them():
    assert labels_of([7, "", 3]).numbers.tolist() == [7, -1, 3]
    assert labels_of([7, "", 3]).names is None
    named = labels_of(["bob", "ann", "", "bob"])
    assert (named.numbers.tolist(), named.names) == ([1, 0, -1, 1], ["ann", "bob"])
    assert labels_of(["10", "9"]).names == ["9", "10"], "as numbers where all are"
    assert labels_of(["", ""]) is None
    assert labels_of([]) is None
    with pytest.raises(UserError, match="more than 64 bits"):
        labels_of([1 << 70])


def test_the_first_folder_of_a_path_is_its_label():
    found = folder_labels(["b/x/0.jpg", "a/0.jpg", "0.jpg"])
    assert (found.numbers.tolist(), found.names) == ([1, 0, -1], ["a", "b"])
    assert folder_labels(["0.jpg"]) is None


def test_files_are_read_by_place_and_what_they_do_not_have_is_an_error(tmp_path, monkeypatch):
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        path.write_bytes(path.name.encode() * 10)
    content = OpenFiles(paths)
    assert (content(1, 2, 3), content(0, 0, 10), content(0, 3, 0)) == (b"bbb", b"a" * 10, b"")
    with pytest.raises(RecordError, match="is cut off: b ends inside it"):
        content(1, 8, 3)
    monkeypatch.setattr(stored, "MOST_BYTES", 5)
    with pytest.raises(RecordError, match="has 6 bytes, more than an image has"):
        content(1, 0, 6)
    paths[1].unlink()
    with pytest.raises(RecordError, match="does not exist"):
        OpenFiles(paths)(1, 0, 1)


def test_a_state_is_another_when_a_file_changes(tmp_path):
    (tmp_path / "a").write_bytes(b"x")
    before = state_of([tmp_path / "a"])
    assert state_of([tmp_path / "a"]) == before
    (tmp_path / "a").write_bytes(b"xy")
    assert state_of([tmp_path / "a"]) != before
