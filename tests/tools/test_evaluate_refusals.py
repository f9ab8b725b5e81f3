"""evaluate refuses what cannot be judged, and judges what is left beside damage."""

from __future__ import annotations

import os
import pickle
import struct
from pathlib import Path
from zlib import crc32

import pytest
import torch

from evaluation.features import extract
from evaluation.result import read_evaluation
from facestream import USER_ERROR_EXIT_CODE, UserError
from tests.tools.judging import WRITTEN, fill, png, run, write_model, write_set


@pytest.fixture
def there(tmp_path, monkeypatch):
    """A folder to be in, with two models and a set."""
    monkeypatch.chdir(tmp_path)
    fill(tmp_path)
    return tmp_path


class Evil:
    def __reduce__(self):
        return os.mkdir, ("owned",)


def header_of_png(side: int) -> bytes:
    """As much of a PNG as says its size: a gigapixel image in a few bytes."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", crc32(chunk))


def bad_sets(folder: Path) -> None:
    whole = (folder / "small.bin").read_bytes()
    (folder / "cut.bin").write_bytes(whole[: len(whole) // 2])
    (folder / "odd.bin").write_bytes(pickle.dumps(([png(0)] * 3, [True])))
    (folder / "evil.bin").write_bytes(pickle.dumps(Evil()))
    write_set(folder / "damaged.bin", damaged=(3, 17))
    (folder / "other").mkdir()
    write_set(folder / "other/small.bin")
    (folder / "pairs.csv").write_text("a.png,b.png,1\na.png,c.png,0\n")
    for person in ("p", "q"):
        (folder / "huge" / person).mkdir(parents=True)
        for k in range(2):
            content = header_of_png(40_000) if (person, k) == ("q", 1) else png(0)
            (folder / f"huge/{person}/{k}.png").write_bytes(content)
    (folder / "genuineless.csv").write_text("image 2,impostors\nimage 3,impostors\n")
    (folder / "misnamed.csv").write_text("image,group,q\na.png,x,1\nb.png,y,2\n")
    (folder / "notes.csv").write_text("image 0,x\nimage 0,y\n")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--sets", "cut.bin"), "cut.bin: not a whole verification set"),
        (("--sets", "odd.bin"), "odd.bin: it holds 3 images and 1 truth values"),
        (("--sets", "evil.bin"), "which could run anything; nothing was run"),
        (
            ("--sets", "damaged.bin"),
            "a on damaged: 2 of 60 images are bad: image 3 cannot be",
        ),
        (("--sets", "none.bin"), "none.bin does not exist"),
        (("--sets", "small.bin", "other/small.bin"), "are both called small: rename one"),
        (("--sets", "pairs:pairs.csv:other"), "3 of 3 images are not in other: a.png (line 1)"),
        (("--sets", "small.bin", "--onnx-input", "rgb"), "no model is an .onnx file"),
        (("--sets", "small.bin", "--groups", "notes.csv"), "notes.csv: image 0 is x and y"),
        (("--sets", "small.bin", "--quality", "none.csv"), "none.csv does not exist"),
        (("--sets", "small.bin", "--folds", "31"), "small: found 30 pairs for 31 folds"),
        (("--sets", "small.bin", "--disjoint-folds"), "does not say which people its images show"),
        (("--pairs-from", "other", "--no-face", "skip"), "--no-face goes with --landmarks or"),
        ((), "no set is named: expected --sets SET..."),
        (
            ("--pairs-from", "huge", "--folds", "2"),
            "a on huge: 1 of 4 images are bad: q/1.png cannot be",
        ),
        (("--pairs-from", "other"), "other holds 0 folders with images"),
        (("--sets", "small.bin", "--groups", "genuineless.csv"), "small: no genuine pair of 'imp"),
        (
            ("--sets", "small.bin", "--groups", "misnamed.csv:group"),
            "small: none of the images in the",
        ),
        (("--sets", "small.bin", "--quality", "misnamed.csv:q"), "small: 60 of 60 images have no"),
    ],
)
def test_what_cannot_be_judged_ends_in_a_line(arguments, complaint, there):
    bad_sets(there)
    ended = run("a.pth", *arguments)
    assert ended.returncode == USER_ERROR_EXIT_CODE
    assert complaint in ended.stderr
    assert not (there / "owned").exists()
    assert not (there / "out/results.json").exists()


def test_what_a_set_cannot_show_is_known_before_any_is_embedded(there, monkeypatch):
    bad_sets(there)
    monkeypatch.setattr("evaluation.evaluate.extract", lambda *_, **__: pytest.fail("embedded"))
    for asked in (("--groups", "misnamed.csv:group"), ("--disjoint-folds",), ("--folds", "31")):
        ended = run("a.pth", "--sets", "other/small.bin", "damaged.bin", *asked)
        assert ended.returncode == USER_ERROR_EXIT_CODE, ended.stderr


def test_damaged_images_are_counted_where_they_may_be_skipped(there):
    bad_sets(there)
    ended = run("a.pth", "--sets", "damaged.bin", "--skip-damaged")
    assert ended.returncode == 0, ended.stderr
    (result,) = read_evaluation(there / "out/results.json").results
    assert (result.counts["damaged"], result.counts["pairs left out"]) == (2, 2)


def person(folder: Path, name: bytes, *images: bytes) -> None:
    inside = os.path.join(os.fsencode(folder), name)
    os.makedirs(inside)
    for k, content in enumerate(images):
        with open(os.path.join(inside, f"{k}.png".encode()), "wb") as file:
            file.write(content)


@pytest.mark.parametrize("content", [b"", b"no image", png(5)[:200]])
def test_a_file_that_is_no_image_is_a_damaged_image(content, there):
    for k in range(11):
        person(there / "photos", f"p{k}".encode(), png(2 * k), png(2 * k))
    person(there / "photos", b"q", png(1), content)
    ended = run("a.pth", "--pairs-from", "photos")
    assert ended.returncode == USER_ERROR_EXIT_CODE
    assert "1 of 24 images are bad: q/1.png" in ended.stderr
    assert "BytesIO" not in ended.stderr
    ended = run("a.pth", "--pairs-from", "photos", "--skip-damaged")
    assert ended.returncode == 0, ended.stderr
    (result,) = read_evaluation(there / "out/results.json").results
    assert result.counts["damaged"] == 1


def test_names_that_are_no_text_are_shown_by_their_bytes(there):
    for k in range(11):
        person(there / "photos", f"Zoë {k}".encode(), png(2 * k), png(2 * k))
    try:
        person(there / "photos", b"\xff", png(1), png(1))
    except OSError:
        pytest.skip("this disk takes no such names")
    ended = run("a.pth", "--pairs-from", "photos")
    assert ended.returncode == 0, ended.stderr
    assert "\\udcff/0.png" in (there / "out/results.json").read_text("utf-8")


def diverge(path: str) -> None:
    state = torch.load(path)
    state["features.weight"].fill_(1e38)
    torch.save(state, path)


def test_a_diverged_model_beside_others_is_named_and_they_are_judged(there):
    diverge("a.pth")
    write_model(there / "c.pth", 2)
    ended = run("b.pth", "a.pth", "c.pth", "--sets", "small.bin", "small.bin+blur")
    assert ended.returncode == USER_ERROR_EXIT_CODE
    (line,) = ended.stderr.strip().splitlines()
    assert line.startswith("evaluate: a on small: 60 of 60 embeddings are not finite")
    found = read_evaluation(there / "out/results.json")
    assert [model.name for model in found.models] == ["b", "c"]
    assert [(r.set, r.model) for r in found.results] == [
        (name, model) for name in ("small", "small+blur") for model in ("b", "c")
    ]
    assert {(one.first, one.second) for one in found.comparisons} == {("b", "c")}
    assert sorted(path.name for path in (there / "out").iterdir() if path.is_file()) == WRITTEN


def test_a_model_that_fails_on_the_last_set_has_no_results_at_all(there, monkeypatch):
    monkeypatch.setattr("evaluation.evaluate.extract", failing_on("small+blur, a", extract))
    ended = run("a.pth", "b.pth", "--sets", "small.bin", "small.bin+blur")
    assert ended.returncode == USER_ERROR_EXIT_CODE
    assert "a on small+blur: cannot embed" in ended.stderr
    found = read_evaluation(there / "out/results.json")
    assert [(r.set, r.model) for r in found.results] == [("small", "b"), ("small+blur", "b")]
    assert not found.comparisons


def failing_on(progress: str, extract):
    def failing(*arguments, **options):
        if options["progress"] == progress:
            raise UserError("cannot embed")
        return extract(*arguments, **options)

    return failing


def test_a_diverged_model_is_refused(there):
    diverge("a.pth")
    ended = run("a.pth", "--sets", "small.bin")
    assert ended.returncode == USER_ERROR_EXIT_CODE
    assert "embeddings are not finite: the model has diverged" in ended.stderr
