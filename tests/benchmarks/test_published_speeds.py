"""The tables of docs/planning.md are what is counted, and what plans say of their error."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
import torch

from benchmarks import published_speeds
from benchmarks.baselines import ArcfaceTorchHead
from benchmarks.published_speeds import ARCFACE_TORCH, DIM, NVIDIA, Row, reached, their_head
from models.traffic import Traffic
from training.planning.speed import REACHED

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_tables_of_the_page_are_what_is_counted():
    written = (ROOT / "docs/planning.md").read_text(encoding="utf-8")
    for rows in (NVIDIA, ARCFACE_TORCH):
        expected = "\n".join(published_speeds.table(rows))
        assert expected in written, f"put this into docs/planning.md:\n{expected}"
    for line in published_speeds.summary():
        assert line in written


def test_the_cards_of_the_page_are_those_of_plans():
    written = (ROOT / "docs/planning.md").read_text(encoding="utf-8")
    expected = "\n".join(published_speeds.card_table())
    assert expected in written, f"put this into docs/planning.md:\n{expected}"


@pytest.mark.slow
def test_what_plans_say_of_their_error_is_what_was_found():
    tuned, usual = reached(NVIDIA), reached(ARCFACE_TORCH)
    assert round(statistics.median(tuned), 2) == REACHED.tuned
    assert round(statistics.median(usual), 2) == REACHED.usual
    assert round(min(tuned + usual), 2) == REACHED.lowest
    assert round(max(tuned + usual), 2) == REACHED.highest


@pytest.mark.parametrize(("classes", "rate"), [(4_000, 1.0), (20_000, 0.1)])
def test_their_head_moves_what_its_step_counts(classes, rate):
    batch = 64
    head = ArcfaceTorchHead(classes, DIM, sample_rate=rate, seed=0, autocast=True)
    embeddings = torch.randn(batch, DIM, requires_grad=True)
    labels = torch.arange(batch)
    for _ in range(2):  # the first makes the momentum
        with Traffic() as traffic:
            head(embeddings, labels).backward()
            head.step(0.1)
    row = Row("", "v100", 1, batch, 1, "iresnet50", classes, rate)
    assert their_head(row).bytes == pytest.approx(traffic.bytes.total(), rel=0.1)
    assert their_head(row).launches == pytest.approx(traffic.calls.total(), rel=0.2)


def test_resnet50_multiplies_what_is_published_of_it():
    """4.1 thousand million multiply-adds an image, 25.6 million parameters."""
    found = published_speeds._counted("resnet50")
    assert found.parameters == 25_557_032
    assert found.counts.flops / 6 == pytest.approx(4.1e9, rel=0.03)
