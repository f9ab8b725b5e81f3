"""What a run finds is shown at each evaluation and left behind as a report; nothing of it fails."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from evaluation.report import picture as drawing
from evaluation.result import Curve, Figure, HardPair, Model, Result, read_evaluation
from evaluation.scoring import Sample, Scored
from training.reporting import findings as module
from training.reporting.findings import Findings
from training.reporting.journal import Position

MODEL = Model("run@10", "run/checkpoints/step_000000010", "d", "iresnet50", 4, 112, "RGB", "bf16")
RESULT = Result(
    model="somebody",
    set="lfw",
    protocol="verification/1",
    settings={"flip": True},
    counts={"genuine": 30, "impostor": 30},
    headline="accuracy",
    figures={"accuracy": Figure(0.9)},
    curves={
        "roc": Curve([0, 0.1, 1], [0, 0.8, 1]),
        "genuine": Curve([-0.5, 0.5], [3, 27]),
        "impostor": Curve([-0.5, 0.5], [29, 1]),
    },
    hardest={"false accepts": [HardPair(0.6, "a", "b")], "false rejects": []},
)


def jpeg() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (112, 112), (90, 90, 90)).save(file, format="jpeg")
    return file.getvalue()


SCORED = Scored(
    {"accuracy": 0.9},
    RESULT,
    Sample(("a", "b"), np.ones((2, 4), np.float32)),
    {"a": jpeg(), "b": jpeg()},
)


class Shown:
    """A dashboard that keeps pictures and histograms."""

    def __init__(self) -> None:
        self.images: dict[str, tuple[int, ...]] = {}
        self.histograms: dict[str, tuple[list[float], list[float]]] = {}

    def image(self, name: str, image: np.ndarray, step: int) -> None:
        self.images[name] = image.shape

    def histogram(self, name: str, counts: np.ndarray, edges: np.ndarray, step: int) -> None:
        self.histograms[name] = (counts.tolist(), edges.tolist())


def findings(folder: Path, *, pictures: bool = True) -> tuple[Findings, Any]:
    shown: Any = Shown()
    made = Findings(folder, folder / "tensorboard", dashboards=[shown], pictures=pictures)
    return made, shown


def at(step: int) -> Position:
    return Position(step, step / 10, 100)


@pytest.mark.slow
def test_curves_and_histograms_are_shown_at_every_evaluation(tmp_path: Path) -> None:
    found, shown = findings(tmp_path)
    found.add(at(10), MODEL, SCORED)
    assert shown.images.keys() == {"verification_lfw/roc", "verification_lfw/scores"}
    assert all(shape[2] == 3 and shape[0] > 100 for shape in shown.images.values())
    assert shown.histograms == {
        "verification_lfw/genuine": ([3, 27], [-1, 0, 1]),
        "verification_lfw/impostor": ([29, 1], [-1, 0, 1]),
    }


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """matplotlib takes a second."""
    for name in ("roc_picture", "scores_picture"):
        monkeypatch.setattr(drawing, name, lambda _: np.zeros((2, 2, 3), np.uint8))


def test_the_newest_result_of_each_set_is_in_the_report(tmp_path: Path, undrawn: None) -> None:
    """Of whatever step: a run that is stopped has sets that were scored before others."""
    found, _ = findings(tmp_path)
    for step in (0, 10):
        state = replace(MODEL, name=f"run@{step}")
        found.add(at(step), state, SCORED)
        if step == 0:
            found.add(at(step), state, replace(SCORED, result=replace(RESULT, set="ijbc")))
    found.write()
    assert found.report == tmp_path / "report.html"
    kept = read_evaluation(tmp_path / "results.json")
    assert [(one.set, one.model) for one in kept.results] == [("lfw", "run@10"), ("ijbc", "run@0")]
    assert {one.name for one in kept.models} == {"run@0", "run@10"}
    assert all(one.made.endswith("+00:00") for one in kept.results)
    page = found.report.read_text()
    assert "run@10" in page
    assert "data:image/jpeg" in page
    assert (tmp_path / "tensorboard" / "projector" / "faces.png").exists()


def test_a_report_without_intervals_says_why(tmp_path: Path, undrawn: None) -> None:
    """A set that was scored at the end has them; a stopped run has others."""
    found, _ = findings(tmp_path)
    ended = replace(RESULT, set="ended", interval={"level": 0.95, "draws": 1000})
    for result in (RESULT, ended):
        found.add(at(10), MODEL, replace(SCORED, result=result))
    found.write()
    kept = {one.set: one.interval for one in read_evaluation(tmp_path / "results.json").results}
    assert kept["ended"] == ended.interval
    assert "stopped" in kept["lfw"]["missing"]
    page = (tmp_path / "report.html").read_text()
    assert "No intervals: a run makes them of its last state" in page


def test_without_pictures_the_report_holds_none(tmp_path: Path, undrawn: None) -> None:
    found, _ = findings(tmp_path, pictures=False)
    found.add(at(10), MODEL, replace(SCORED, pictures={}))
    found.write()
    assert "data:image/jpeg" not in (tmp_path / "report.html").read_text()
    assert not list(tmp_path.rglob("*.png"))
    assert (tmp_path / "tensorboard" / "projector_config.pbtxt").exists()


def test_a_stopped_run_which_kept_no_picture_shows_no_empty_boxes(tmp_path, undrawn) -> None:
    found, _ = findings(tmp_path)
    found.add(at(10), MODEL, replace(SCORED, pictures={}))
    found.write()
    said = (tmp_path / "report.html").read_text()
    assert "no pictures of people: they were left out" in said, "as where they are unwanted"


def test_nothing_found_leaves_nothing_behind(tmp_path: Path) -> None:
    found, _ = findings(tmp_path)
    found.add(at(10), MODEL, Scored({"accuracy": 0.9}))
    found.write()
    assert found.report is None
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_a_warning(tmp_path: Path, undrawn: None, caplog) -> None:
    found, _ = findings(tmp_path)
    found.add(at(10), MODEL, SCORED)
    (tmp_path / "report.html").mkdir()
    found.write()
    assert found.report is None
    assert "report.html cannot be written: [Errno 21]" in caplog.text
    assert json.loads((tmp_path / "results.json").read_text())["results"]
    assert (tmp_path / "tensorboard" / "projector_config.pbtxt").exists(), "the other is tried"


def test_a_mistake_of_ours_ends_no_run_and_shows_its_trace(tmp_path, undrawn, caplog, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(module, "write_html", fail)
    monkeypatch.setattr(drawing, "roc_picture", fail)
    found, _ = findings(tmp_path)
    found.add(at(10), MODEL, SCORED)
    found.write()
    said = [(record.message, bool(record.exc_info)) for record in caplog.records]
    assert said == [
        ("the curves of lfw cannot be written: ours", True),
        ("report.html cannot be written: ours", True),
    ]
