"""metrics.jsonl: what is damaged or came again in it is not read as the run's course."""

from __future__ import annotations

import json

import pytest

from tests.bad_disk import break_disk
from training.reporting.journal import forget_after, read_lines


def reading(step: int, **values: object) -> dict[str, object]:
    return {"step": step, "epoch": step / 10, "loss": 9.0, **values}


def scores(step: int, **found: object) -> dict[str, object]:
    return {"step": step, "epoch": step / 10, "verification": found}


GOOD = [scores(0, lfw={"accuracy": 0.5}), reading(5), reading(10, lr=None)]


def written(path, lines) -> list[dict[str, object]]:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(f"{text}\n" for text in texts))
    return read_lines(path)


@pytest.mark.parametrize(
    "damaged",
    [
        *("", "null", "7", "[1, 2]", "[" * 100_000, '{"step": 6, "epo', "{}", "\0"),
        '{"step": ' + "9" * 5000 + ', "epoch": 1.0}',
        reading(6, loss="9.0"),
        reading(6, lr=[0.1]),
        reading(6, epoch="0.6"),
        reading(6, epoch=None),
        reading(6, epoch=0),
        reading(6, epoch=float("nan")),
        {**reading(6), "step": True},
        {**reading(6), "step": 6.0},
        {**reading(6), "step": -6},
        {"step": 6, "loss": 9.0},
        scores(6, lfw={}),
        scores(6, lfw={"accuracy": "0.5"}),
        scores(6, lfw=[0.5]),
        scores(6, lfw=None),
    ],
    ids=lambda damaged: str(damaged)[:40],
)
def test_a_damaged_line_is_not_read_and_the_others_are(tmp_path, damaged):
    assert written(tmp_path / "metrics.jsonl", [*GOOD[:2], damaged, GOOD[2]]) == GOOD


def test_steps_that_came_again_are_read_once(tmp_path):
    """As where a full disk did not let a resumed run drop what comes again."""
    twice = [*GOOD, reading(15), scores(15, lfw={"accuracy": 0.6}), reading(5, loss=8.0), GOOD[2]]
    assert written(tmp_path / "metrics.jsonl", twice) == [
        GOOD[0],
        reading(5, loss=8.0),
        GOOD[2],
    ]


def test_several_sets_of_one_step_are_all_read(tmp_path):
    lines = [reading(5), scores(5, lfw={"accuracy": 0.5}), scores(5, ijbc={"tar": 0.5}), reading(6)]
    assert written(tmp_path / "metrics.jsonl", lines) == lines


def test_what_comes_again_is_dropped_where_no_file_can_be_renamed(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    written(path, GOOD)
    break_disk(monkeypatch, "norename")
    forget_after(path, 5)
    assert read_lines(path) == GOOD[:2]
    assert list(tmp_path.iterdir()) == [path]
