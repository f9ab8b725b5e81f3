from __future__ import annotations

import json
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from training.reporting import curves
from training.reporting.curves import plot_curves

TITLES = ["Loss", "Verification", "Learning rate", "Images per second"]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that `plot_curves` makes, to be read where the pixels cannot."""
    figures: list[Figure] = []

    class Kept(Figure):
        def __init__(self, *args: object, **options: object) -> None:
            super().__init__(*args, **options)
            figures.append(self)

    monkeypatch.setattr(curves, "Figure", Kept)
    return figures


def write(folder: Path, lines: list[dict]) -> Path:
    path = folder / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def log(step: int) -> dict:
    return {
        "step": step,
        "epoch": step / 50,
        "loss": 9 - step / 100,
        "lr": 0.1,
        "images_per_s": 400,
    }


def checked(step: int, **accuracies: float) -> dict:
    sets = {name: {"accuracy": a, "auc": 0.9} for name, a in accuracies.items()}
    return {"step": step, "epoch": step / 50, "verification": sets}


def points(axes: Axes, line: int = 0) -> list[tuple[int, float]]:
    return [tuple(point) for point in axes.lines[line].get_xydata().tolist()]


def test_the_picture_is_a_png_with_something_in_every_panel(tmp_path: Path) -> None:
    metrics = write(tmp_path, [*map(log, range(20, 420, 20)), checked(200, lfw=0.8, agedb=0.7)])
    output = tmp_path / "new" / "folder" / "curves.png"
    plot_curves(metrics, output)
    with Image.open(output) as picture:
        assert picture.format == "PNG"
        width, height = picture.size
        assert width > 1000
        for left, top in ((0, 0), (width // 2, 0), (0, height // 2), (width // 2, height // 2)):
            panel = picture.convert("RGB").crop((left, top, left + width // 2, top + height // 2))
            assert len(panel.getcolors(maxcolors=1 << 16)) > 20


def test_every_panel_shows_what_was_logged(tmp_path: Path, drawn: list[Figure]) -> None:
    metrics = write(
        tmp_path, [log(20), log(40), checked(40, lfw=0.6, agedb=0.5), log(60), checked(60, lfw=0.7)]
    )
    plot_curves(metrics, tmp_path / "curves.png")
    loss, accuracy, rate, speed = drawn[0].axes
    assert [axes.get_title(loc="left") for axes in drawn[0].axes] == TITLES
    assert drawn[0].get_suptitle() == tmp_path.name
    assert points(loss) == [(20, 8.8), (40, 8.6), (60, 8.4)]
    assert points(rate) == [(20, 0.1), (40, 0.1), (60, 0.1)]
    assert points(speed) == [(20, 400), (40, 400), (60, 400)]
    assert points(accuracy, 0) == [(40, 0.6), (60, 0.7)]
    assert points(accuracy, 1) == [(40, 0.5)]
    named = [text.get_text() for text in accuracy.get_legend().get_texts()]
    assert named == ["lfw  70 %", "agedb  50 %"]
    assert loss.get_title(loc="right") == "last 8.4"


def test_a_resumed_run_overwrites_the_steps_it_repeats(tmp_path: Path, drawn: list[Figure]) -> None:
    again = [{"step": 40, "loss": 7.0}, {"step": 50, "loss": 6.5}, {"step": 60, "loss": 6.0}]
    metrics = write(tmp_path, [log(20), log(40), log(60), log(80), *again])
    plot_curves(metrics, tmp_path / "curves.png")
    assert points(drawn[0].axes[0]) == [(20, 8.8), (40, 7.0), (50, 6.5), (60, 6.0), (80, 8.2)]


@pytest.mark.slow
def test_a_long_curve_is_drawn_as_it_is_and_as_running_mean(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    metrics = write(tmp_path, [{"step": i, "loss": i % 2} for i in range(600)])
    plot_curves(metrics, tmp_path / "curves.png")
    axes = drawn[0].axes[0]
    assert points(axes, 0) == [(i, i % 2) for i in range(600)]
    steps, means = zip(*points(axes, 1))
    assert list(steps) == list(range(10, 590))  # the middles of windows of 21
    assert means[0] == pytest.approx(10 / 21)
    assert means[1] == pytest.approx(11 / 21)


def test_panels_without_data_say_so(tmp_path: Path, drawn: list[Figure]) -> None:
    plot_curves(write(tmp_path, [{"step": 1, "loss": 3.0}]), tmp_path / "curves.png")
    texts = [[text.get_text() for text in axes.texts] for axes in drawn[0].axes]
    assert texts == [[], *[["nothing logged yet"]] * 3]


def test_a_loss_that_is_not_finite_leaves_a_gap(tmp_path: Path) -> None:
    lines = [{"step": i, "loss": float("nan") if i == 3 else 1.0} for i in range(5)]
    plot_curves(write(tmp_path, lines), tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 0


def test_a_missing_or_empty_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"metrics\.jsonl: no such file"):
        plot_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    for lines in ([], [{"step": 3, "epoch": 0.1}]):
        with pytest.raises(ValueError, match=r"metrics\.jsonl: nothing to draw"):
            plot_curves(write(tmp_path, lines), tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


@pytest.mark.parametrize(
    "garbled",
    [
        '{"step": 40, "lo',
        "\x00\x01\x02",
        "[1, 2]",
        '"step"',
        '{"loss": 3.0}',
        '{"step": "40", "loss": 3.0}',
        '{"step": true, "loss": 3.0}',
        '{"step": 40, "loss": "low"}',
        '{"step": 40, "loss": null}',
        '{"step": 40, "verification": {"lfw": {}}}',
        '{"step": 40, "verification": [0.9]}',
    ],
)
def test_a_garbled_line_is_named_by_its_number(tmp_path: Path, garbled: str) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text(json.dumps(log(20)) + "\n\n" + garbled + "\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 3: not a line of metrics"):
        plot_curves(metrics, tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()
