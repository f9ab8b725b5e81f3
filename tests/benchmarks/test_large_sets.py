"""The benchmark of large sets asks for the folder that it writes them to."""

from __future__ import annotations

from benchmarks.large_sets import main
from tests.commands import call


def test_without_a_folder_it_says_what_is_expected():
    ended = call(main)
    assert ended.returncode == 2
    assert "expected a folder on a disk with room" in ended.stderr
