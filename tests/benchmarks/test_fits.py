"""The table of docs/heads.md says what the prediction says."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import fits

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_table_of_what_fits_is_what_is_predicted():
    written = (ROOT / "docs/heads.md").read_text()
    expected = "\n".join([*fits.table(), "", fits.others()])
    assert expected in written, f"put this into docs/heads.md:\n{expected}"


def test_what_does_not_fit_is_not_said_to():
    assert fits._cell(fits.ROOM) == "**80**"
    assert fits._cell(fits.ROOM + 1) == "80"
