"""evaluate: what it writes; killed commands that go on, ranks that share."""

from __future__ import annotations

import io
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image

from evaluation import embedding
from evaluation.kept_rows import FileRows
from evaluation.leaks.overlap import SAME_IMAGE, Finding, Overlap
from evaluation.pair_set import write_bin
from evaluation.protocols.named_sets import CLEAN
from evaluation.protocols.sets import open_set
from evaluation.result import read_evaluation
from facestream import USER_ERROR_EXIT_CODE
from pipeline import align as pipeline_align
from tests.ranks import run_ranks, start
from tests.tools.judging import (
    BATCH,
    OPTIONS,
    PAIRS,
    SIZE,
    WRITTEN,
    fill,
    png,
    run,
)
from tests.training.frozen.test_onnx_network import needs_onnx, write_onnx
from tools import evaluate
from tools.evaluate import judge, parser
from training.distributed import World

HEADER = 192  # of kept embeddings: columns, and a digest of each batch


@pytest.fixture
def there(tmp_path, monkeypatch):
    """A folder to be in, with two models and a set."""
    monkeypatch.chdir(tmp_path)
    fill(tmp_path)
    return tmp_path


def judge_alone(world: World, folder: str, *arguments: str, output: str = "out") -> bytes:
    os.chdir(folder)
    given = [*arguments, "-o", output, *map(str, OPTIONS)]
    judge(parser().parse_args(given), world, made="2030-01-01T00:00:00+00:00")
    return (Path(output) / "results.json").read_bytes() if world.is_main else b""


def test_models_and_sets_make_one_comparison(there):
    ended = run("a.pth", "b.pth", "--sets", "small.bin", "--sets", "small.bin+blur")
    assert ended.returncode == 0, ended.stderr
    found = read_evaluation(there / "out/results.json")
    assert [(r.set, r.model) for r in found.results] == [
        (name, model) for name in ("small", "small+blur") for model in ("a", "b")
    ]
    assert [model.name for model in found.models] == ["a", "b"]
    assert found.models[0].digest != found.models[1].digest
    assert found.results[0].made
    assert found.results[0].counts["genuine"] == PAIRS // 2
    assert sorted(path.name for path in (there / "out").iterdir() if path.is_file()) == WRITTEN
    assert "judged        small+blur, b: accuracy, % " in ended.stdout
    assert "wrote         out/report.html" in ended.stdout


def test_models_are_compared_on_the_same_pairs(there):
    run("a.pth", "b.pth", "--sets", "small.bin")
    found = read_evaluation(there / "out/results.json")
    (comparison,) = [one for one in found.comparisons if one.figure == "accuracy"]
    first, second = (result.figures["accuracy"].value for result in found.results)
    assert (comparison.first, comparison.second) == ("a", "b")
    assert comparison.difference.value == pytest.approx(first - second)
    assert comparison.verdict in (there / "out/results.md").read_text()


def test_pairs_are_drawn_from_somebodys_own_photos(there):
    for person in range(6):
        (there / f"photos/p{person}").mkdir(parents=True)
        for k in range(3):
            (there / f"photos/p{person}/{k}.png").write_bytes(png(2 * person))
    ended = run("a.pth", "--pairs-from", "photos", "--per-person", 2)
    assert ended.returncode == 0, ended.stderr
    (result,) = read_evaluation(there / "out/results.json").results
    assert (result.set, result.counts["genuine"], result.counts["impostor"]) == ("photos", 12, 12)
    assert result.counts["identities"] == 6
    assert result.settings["pairs"] == "drawn, seed 0, at most 2 genuine ones of a person"


@pytest.mark.parametrize("options", [(), ("--skip-damaged",)])
def test_photographs_are_cropped_as_they_are_loaded(options, there):
    """By a list of landmarks; one photo has no line in it."""
    template = pipeline_align.TEMPLATE + 20
    lines = []
    for person in range(4):
        (there / f"photos/p{person}").mkdir(parents=True)
        for k in range(3):
            photo = Image.open(io.BytesIO(png(2 * person))).resize((200, 160))
            photo.save(there / f"photos/p{person}/{k}.png")
            lines.append(f"p{person}/{k}.png," + ",".join(f"{x:.2f}" for x in template.ravel()))
    (there / "marks.csv").write_text("\n".join(lines[1:]))
    given = ("a.pth", "--pairs-from", "photos", "--landmarks", "marks.csv", *options)
    ended = run(*given)
    if not options:
        assert ended.returncode == USER_ERROR_EXIT_CODE
        assert "1 of 12 images are bad: p0/0.png no face" in ended.stderr
        assert run("a.pth", "--pairs-from", "photos").returncode == USER_ERROR_EXIT_CODE
        return
    assert ended.returncode == 0, ended.stderr
    (result,) = read_evaluation(there / "out/results.json").results
    assert (result.counts["images"], result.counts["damaged"]) == (12, 1)


def test_figures_are_given_by_group_and_over_a_quality(there):
    rows = [f"image {place},{'left' if place < PAIRS else 'right'}" for place in range(2 * PAIRS)]
    (there / "groups.csv").write_text("\n".join(["image,group", *rows]))
    (there / "quality.csv").write_text(
        "\n".join(f"image {place},{place}" for place in range(2 * PAIRS))
    )
    ended = run(
        "a.pth", "--sets", "small.bin", "--groups", "groups.csv", "--quality", "quality.csv"
    )
    assert ended.returncode == 0, ended.stderr
    (result,) = read_evaluation(there / "out/results.json").results
    assert set(result.groups) == {"left", "right"}
    assert result.settings["discarded by"].startswith("quality:")


def write_overlap(path: Path, *images: int, of: Path) -> Path:
    """A leak check that has found these images of a set."""
    fingerprint = open_set(str(of), image_size=SIZE).images.fingerprint
    found = [Finding(SAME_IMAGE, "theirs", f"image {i}", 7, 100 + i, 1.0) for i in images]
    about = {"fingerprint": fingerprint, "images": 2 * PAIRS, "damaged": 0}
    training = {"path": "train.rec", "fingerprint": "f", "images": 9, "identities": 3, "damaged": 0}
    Overlap(training, {"theirs": about}, {}, found).write(path)
    return path


def test_figures_are_given_without_what_leaked_too(there):
    write_overlap(there / "overlap.json", 0, 3, 20, of=there / "small.bin")
    ended = run("a.pth", "--sets", "small.bin", "small.bin+blur", "--without", "overlap.json")
    assert ended.returncode == 0, ended.stderr
    assert "same image 3" in ended.stdout
    found = read_evaluation(there / "out/results.json")
    counts = {r.set: r.counts["genuine"] + r.counts["impostor"] for r in found.results}
    assert counts == {
        "small": PAIRS,
        f"small{CLEAN}": PAIRS - 3,
        "small+blur": PAIRS,
        f"small+blur{CLEAN}": PAIRS - 3,
    }
    assert "same image 3" in found.overlap["theirs"]


def test_a_leak_check_of_other_sets_is_refused_and_one_that_leaves_nothing_is_said(there):
    write_overlap(there / "all.json", *range(2 * PAIRS), of=there / "small.bin")
    ended = run("a.pth", "--sets", "small.bin", "--without", "all.json")
    assert ended.returncode == 0, ended.stderr
    found = read_evaluation(there / "out/results.json")
    assert [result.set for result in found.results] == ["small"]
    assert "found 0 pairs" in ended.stdout
    assert "found 0 pairs" in found.overlap[f"small{CLEAN}"]
    write_bin(there / "two.bin", [png(i) for i in range(40)], [True, False] * 10)
    ended = run("a.pth", "--sets", "two.bin", "--without", "all.json")
    assert ended.returncode == USER_ERROR_EXIT_CODE
    assert "not about this set" in ended.stderr


def test_a_report_holds_faces_unless_they_are_not_wanted(there):
    run("a.pth", "--sets", "small.bin")
    assert 'src="data:image/' in (there / "out/report.html").read_text()
    run("a.pth", "--sets", "small.bin", "--no-pictures")
    assert "data:image/" not in (there / "out/report.html").read_text()


def test_what_is_kept_is_not_embedded_again(there, monkeypatch):
    run("a.pth", "--sets", "small.bin")
    first = (there / "out/results.json").read_text()
    monkeypatch.setattr(embedding, "map_ahead", lambda load, batches, **_: refuse(batches))
    assert run("a.pth", "--sets", "small.bin").returncode == 0
    again = (there / "out/results.json").read_text()
    assert without_dates(first) == without_dates(again)


def refuse(batches: list[range]):
    assert batches == [], "it embeds what is kept"
    return iter(())


def without_dates(text: str) -> str:
    content = json.loads(text)
    for result in content["results"]:
        result["made"] = ""
    return json.dumps(content)


def die_at_third_batch(rank: int, folder: str, *arguments: str) -> None:
    """As kill -9 would end it, in the midst of writing what it has embedded."""
    add, calls = FileRows.add, []

    def add_or_die(rows, block):
        calls.append(len(block))
        if len(calls) == 3:
            rows._write(rows._end(rows.done), block[:5].tobytes())
            os.kill(os.getpid(), signal.SIGKILL)
        add(rows, block)

    FileRows.add = add_or_die
    torch.set_num_threads(1)
    judge_alone(World(0, 1, 0, 1, torch.device("cpu")), folder, *arguments)


@pytest.mark.slow
def test_a_killed_command_goes_on_to_the_same_bytes(there, tmp_path):
    given = ("a.pth", "--sets", "small.bin")
    (whole,) = run_ranks(judge_alone, str(there), *given, world_size=1, folder=tmp_path)
    for path in (there / "out").glob("*"):
        path.rename(there / f"whole_{path.name}")
    with pytest.raises(Exception, match="SIGKILL"):
        start(die_at_third_batch, (str(there), *given), nprocs=1)
    (kept,) = (there / "out/embeddings").iterdir()
    assert kept.stat().st_size == HEADER + (2 * BATCH + 5) * 9 * 4
    assert [path.name for path in (there / "out").iterdir()] == ["embeddings"], "nothing half done"
    (again,) = run_ranks(judge_alone, str(there), *given, world_size=1, folder=tmp_path)
    assert again == whole


@pytest.mark.slow
def test_ranks_share_the_work_and_find_the_same(there, tmp_path):
    given = ("a.pth", "b.pth", "--sets", "small.bin", "small.bin+noise")
    found = []
    for world_size in (1, 2):
        results = run_ranks(judge_alone, str(there), *given, world_size=world_size, folder=tmp_path)
        found.append(results[0])
        (there / "out").rename(there / f"out{world_size}")
    assert found[0] == found[1]


@needs_onnx
@pytest.mark.parametrize("batch", ["batch", 1])
def test_any_onnx_file_is_a_model(batch, there):
    write_onnx(there / "color.onnx", torch.randn(3, 8), batch=batch)
    ended = run("color.onnx", "a.pth", "--sets", "small.bin", "--onnx-input", "bgr,0..1,imagenet")
    assert ended.returncode == 0, ended.stderr
    model, other = read_evaluation(there / "out/results.json").models
    assert (model.name, model.network, model.precision) == ("color", "onnx", "float32")
    assert model.input.startswith("BGR in [0, 1], less [0.485,")
    assert other.network == "iresnet10"
    assert "note          given BGR" in ended.stdout
    assert "as --onnx-input says" in ended.stdout


@needs_onnx
@pytest.mark.parametrize(
    ("file", "arguments", "complaint"),
    [
        ({}, (), "x.onnx does not say the order of its channels or the range"),
        ({}, ("--onnx-input", "64,rgb,-1..1"), "it would be given RGB in [-1, 1], 64 pixels"),
        ({}, ("--onnx-input", "rgb,-1"), "'-1' in 'rgb,-1': expected 112"),
        ({}, ("--onnx-input", "rgb", "--onnx-input", "bgr"), "2 times for 1 .onnx files"),
        ({"shape": (3, SIZE)}, ("--onnx-input", "rgb,-1..1"), "without one for the batch"),
        ({"shape": (3, 64, 64)}, ("--onnx-input", "rgb,-1..1"), "32×32 pixels, not 64×64"),
    ],
)
def test_onnx_files_that_cannot_be_judged_say_why(file, arguments, complaint, there):
    write_onnx(there / "x.onnx", torch.randn(3, 8), **file)
    ended = run("x.onnx", "--sets", "small.bin", *arguments)
    assert (ended.returncode, complaint in ended.stderr) == (USER_ERROR_EXIT_CODE, True), ended


def test_names_tell_models_apart():
    names = evaluate._names
    assert names(["."]) == [Path.cwd().name]
    assert names(["runs/x/a.pth", "b.onnx", "runs/y"]) == ["a", "b", "y"]
    assert names(["x/model.pt", "y/model.pt", "runs/z@best"]) == [
        "x/model",
        "y/model",
        "runs/z@best",
    ]
