"""The table of docs/heads.md says what the prediction says."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import fits
from training.config import HeadConfig
from training.planning.memory import Prediction, predict

# All that there is beside a head.
NOTHING = Prediction(
    libraries=0,
    backbone=0,
    activations=0,
    centers=0,
    momentum=0,
    neighbors=0,
    transients=0,
    loader=0,
    teacher=0,
    checkpoint=0,
    verification=0,
)
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_table_of_what_fits_is_what_is_predicted():
    written = (ROOT / "docs/heads.md").read_text()
    expected = "\n".join([*fits.table(), "", fits.others()])
    assert expected in written, f"put this into docs/heads.md:\n{expected}"


def test_only_what_fits_is_bold(monkeypatch):
    head = HeadConfig(sample_count=1_000_000, place="host")
    fitting = fits.cell(NOTHING, head, 10_000_000)
    assert fitting.startswith("**")
    gpu, host = fitting.strip("*").split(" + ")
    monkeypatch.setattr(fits, "ROOM", (int(gpu) - 1) * 1e9)
    assert fits.cell(NOTHING, head, 10_000_000) == f"{gpu} + {host}"
    monkeypatch.undo()
    monkeypatch.setattr(fits, "HOST_ROOM", (int(host) - 1) * 1e9)
    assert fits.cell(NOTHING, head, 10_000_000) == f"{gpu} + {host}"


@pytest.mark.slow
def test_a_cell_is_what_a_run_would_predict():
    head = HeadConfig(sample_rate=0.1, centers_dtype="bfloat16", momentum=0.0, place="host")
    config = fits.configured("iresnet50", 128, head)
    whole = predict(config, fits.RANK, fits.BF16, num_classes=80_000_000)
    shown = fits.cell(fits.without_head("iresnet50", 128), head, 80_000_000)
    assert shown.strip("*") == f"{whole.total / 1e9:.0f} + {8 * whole.host / 1e9:.0f}"
