"""The recipe atlas: its page is what its lines say, and names what is missing."""

from __future__ import annotations

from benchmarks.atlas import EPOCHS, FACES, cells
from benchmarks.atlas_page import PAGE, draw, page
from benchmarks.cells import finished
from benchmarks.harness import RESULTS


def line(cell: dict, *, accuracy: float = 0.9) -> dict:
    return {
        **cell,
        "accuracy": accuracy,
        "tar": 0.6,
        "loss": 8.0,
        "losses": [20.0] * EPOCHS,
        "accuracies": [accuracy] * EPOCHS,
        "seconds": 20.0,
        "data": "d1",
        "code": "c1",
        "cpu": {"model name": "A CPU", "cpu family": "6"},
        "torch": "2.13.0",
    }


def test_every_loss_is_trained_at_every_rate_three_times():
    wanted = cells()
    assert len(wanted) == 45
    assert len({(one["margin"], one["rate"], one["seed"]) for one in wanted}) == 45
    assert [one["margin"] for one in cells(["magface"], [0.1])] == ["magface"] * 3


def test_the_page_is_what_the_file_says():
    lines = finished(RESULTS / "atlas_cpu.jsonl")
    assert PAGE.read_text() == page(lines, cells(), FACES), "python benchmarks/atlas.py"


def test_a_row_has_mean_deviation_and_command_and_what_is_missing_is_named(tmp_path):
    wanted = cells(["arcface"], [1.0])
    lines = [line(wanted[0], accuracy=0.9), line(wanted[1], accuracy=0.92)]
    text = page(lines, wanted, FACES)
    assert "| arcface: margin 0.3, scale 32 | 1 | 2 | 0.910 ± 0.014 |" in text.replace(
        "\N{NO-BREAK SPACE}", " "
    )
    assert "--losses arcface --rates 1`" in text
    assert "2 of 3 are finished" in text
    assert "arcface 1 seed 2." in text
    assert "Digest of all these: d1." in text
    draw(lines, wanted, tmp_path / "atlas.svg")
    assert "head.sample_rate=1" in (tmp_path / "atlas.svg").read_text()


def test_a_page_of_nothing_says_so():
    text = page([], cells(), FACES)
    assert "0 of 45 are finished" in text
    assert "none yet" in text
