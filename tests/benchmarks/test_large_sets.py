"""The benchmark of large sets asks for the folder that it writes them to, and makes whole ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import large_sets
from benchmarks.large_sets import FORMS, OF_A_PERSON, main, measured, size_on_disk
from tests.commands import call


def test_without_a_folder_it_says_what_is_expected():
    ended = call(main)
    assert ended.returncode == 2
    assert "expected a folder on a disk with room" in ended.stderr


@pytest.mark.parametrize("form", FORMS)
def test_a_set_has_the_images_that_it_is_to_have(form, tmp_path, monkeypatch):
    monkeypatch.setattr(large_sets, "OF_A_SHARD", OF_A_PERSON)
    path = FORMS[form](tmp_path / form, 3 * OF_A_PERSON)
    assert measured(str(path), batch=False)["images"] == 3 * OF_A_PERSON


def test_what_is_linked_counts_once_on_the_disk(tmp_path):
    file = tmp_path / "a"
    file.write_bytes(bytes(1 << 20))
    Path(tmp_path / "b").hardlink_to(file)
    # What a disk takes for it, which may compress it or have it in memory for now, is its own.
    assert size_on_disk(tmp_path) == 512 * (file.stat().st_blocks + tmp_path.stat().st_blocks)
