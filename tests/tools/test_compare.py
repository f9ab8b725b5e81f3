"""compare: two images, folders, lists of pairs, predicted names; what a card decides."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

from evaluation.features import Features
from evaluation.predicted import About, write_predicted
from facestream import USER_ERROR_EXIT_CODE
from models import create_model
from tests.commands import call
from tests.tools.test_evaluate import SIZE, png, write_model
from tools import compare, predict
from tools.sources.compared import Pairs, Side, best_matches
from tools.sources.decision import Decision
from training.frozen.card import Card, OperatingPoint, write_card

OPTIONS = ("--batch", 4, "--device", "cpu", "--precision", "fp32")
POINT = OperatingPoint(
    set="mine", fmr=1e-3, threshold=0.5, low=0.4, high=0.6, genuine=10, impostor=5000, flip=True
)


@pytest.fixture
def there(tmp_path, monkeypatch):
    """A folder to be in, with a model and a gallery of five people."""
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "a.pth", 0)
    for k in range(5):
        path = tmp_path / f"faces/p{k}/one.png"
        path.parent.mkdir(parents=True)
        path.write_bytes(png(10 * k))
    (tmp_path / "photo.png").write_bytes(png(20))  # as p2's
    return tmp_path


def run(*arguments: object, model: str = "a.pth"):
    return call(compare.main, model, *arguments, *OPTIONS)


def with_card(path: Path, *points: OperatingPoint) -> str:
    network = create_model("iresnet10", embedding_dim=8, image_size=SIZE, width=0.25)
    tensors = network.state_dict().items()
    save_file({name: tensor.contiguous() for name, tensor in tensors}, path)
    write_card(
        path,
        Card("iresnet10", 8, f"{SIZE},rgb,-1..1", "float32", digest="", points=points),
    )
    return path.name


def test_an_image_is_like_itself_and_a_model_without_a_card_decides_nothing(there):
    ended = run("photo.png", "faces/p2/one.png")
    assert ended.returncode == 0, ended.stderr
    assert "cosine        1.0000\n" in ended.stdout
    assert "no decision: the model has no card with operating points. Export it" in ended.stdout
    assert run("photo.png", "faces/p1/one.png").stdout.split()[1] != "1.0000"


def test_a_card_decides_and_says_what_the_threshold_stands_for(there):
    other = replace(POINT, set="small", impostor=10, threshold=0.1)
    rarer = replace(POINT, fmr=1e-5, threshold=0.9)
    model = with_card(there / "b.safetensors", other, rarer, POINT)
    ended = run("photo.png", "faces/p2/one.png", model=model)
    assert ended.returncode == 0, ended.stderr
    assert "cosine        1.0000, same\n" in ended.stdout
    assert "from a cosine of 0.500 (undecided from 0.400 to 0.600)" in ended.stdout
    assert "0.001 of 5000 pairs of two people of mine" in ended.stdout
    chosen = run("photo.png", "photo.png", "--set", "small", model=model)
    assert "from a cosine of 0.100" in chosen.stdout
    refused = run("photo.png", "photo.png", "--fmr", "1e-6", model=model)
    assert refused.returncode == USER_ERROR_EXIT_CODE
    assert "It has 0.001 on small, 1e-05 on mine, 0.001 on mine" in refused.stderr
    unknown = run("photo.png", "photo.png", "--set", "none", model=model)
    assert "has no threshold on none" in unknown.stderr


def test_a_card_of_mirrored_embeddings_says_nothing_of_others(there):
    model = with_card(there / "b.safetensors", POINT)
    ended = run("photo.png", "photo.png", "--no-flip", model=model)
    assert "no decision: the model's card is of embeddings with the mirror images'" in ended.stdout
    assert "leave out --no-flip" in ended.stdout


def test_cosines_within_the_interval_of_the_threshold_are_undecided():
    scores = np.array([0.39, 0.4, 0.59, 0.6, np.nan])
    words = ["different", "undecided", "undecided", "same", "undecided"]
    assert Decision(POINT).of(scores).tolist() == words
    bare = replace(POINT, low=None, high=None)
    assert Decision(bare).of(np.array([0.49, 0.5])).tolist() == ["different", "same"]


@pytest.mark.parametrize("search", [("photo.png", "faces"), None])
def test_a_photo_is_looked_up_in_a_gallery(search, there):
    given = search or ("--identify", "photo.png", "--gallery", "faces")
    ended = run(*given, "--top", 3, "-o", "found.csv")
    assert ended.returncode == 0, ended.stderr
    head, *rows = csv.reader(Path("found.csv").read_text().splitlines())
    assert head == ["a", "b", "cosine"]
    assert len(rows) == 3
    assert rows[0] == ["photo.png", "p2/one.png", "1.000000"]
    assert [row[2] for row in rows] == sorted((row[2] for row in rows), key=float, reverse=True)


def test_the_best_matches_are_those_of_the_whole_matrix():
    random = np.random.default_rng(0)
    left, right = (random.standard_normal((n, 4)).astype(np.float32) for n in (1030, 50))
    pairs = best_matches(Side(left, range(1030)), Side(right, range(50)), top=3)
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (left, right)]
    matrix = unit[0] @ unit[1].T
    assert np.array_equal(pairs.second.reshape(-1, 3), np.argsort(-matrix, axis=1)[:, :3])
    expected = matrix[pairs.first, pairs.second]
    assert pairs.cosines(threads=2) == pytest.approx(expected, abs=1e-6)


def test_a_damaged_image_of_a_gallery_is_left_out_and_a_damaged_photo_is_refused(there):
    (there / "faces/p0/one.png").write_bytes(png(0)[:100])
    ended = run("photo.png", "faces", "--top", 10, "-o", "found.csv")
    assert "damaged       1 images of faces are left out, first p0/one.png" in ended.stdout
    assert "p0" not in Path("found.csv").read_text()
    refused = run("faces/p0/one.png", "photo.png")
    assert refused.returncode == USER_ERROR_EXIT_CODE
    assert "1 of 1 images are bad: one.png" in refused.stderr


def test_pairs_of_a_list_are_those_of_the_predicted_folder(there):
    """The second reads no image: there are none any more."""
    names = [f"p{k}/one.png" for k in range(5)]
    lines = ["a,b", *(f"{one},{other}" for one in names for other in names)]
    Path("faces/pairs.csv").write_text("\n".join(lines))
    assert run("--pairs", "faces/pairs.csv", "-o", "read.csv").returncode == 0
    assert call(predict.main, "a.pth", "faces", "-o", "out", *OPTIONS).returncode == 0
    Path("faces/pairs.csv").rename("pairs.csv")
    for name in names:
        Path("faces", name).unlink()
    given = ("--predicted", "out")
    ended = run("--pairs", "pairs.csv", "-o", "known.csv", *given)
    assert ended.returncode == 0, ended.stderr
    assert "and 5 more" in ended.stdout
    first, second = (
        list(csv.reader(Path(name).read_text().splitlines())) for name in ("read.csv", "known.csv")
    )
    assert [row[:2] for row in first] == [row[:2] for row in second]
    assert [float(row[2]) for row in first[1:]] == pytest.approx(
        [float(row[2]) for row in second[1:]], abs=2e-6
    )
    assert "cosine        1.0000" in run(names[0], names[0], *given).stdout


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("x", "y", "--predicted", "out"), "x is no name in out/names.txt"),
        (("--pairs", "one.csv", "--predicted", "out"), "line 1: found 'alone', expected two names"),
        (("--pairs", "bad.csv", "--predicted", "out"), "line 2: 'z' is no name of an image"),
        (("--pairs", "empty.csv", "--predicted", "out"), "empty.csv has no pairs"),
        (("a", "b", "--predicted", "other"), "embeddings of two models cannot be compared"),
        (("a", "b", "--predicted", "out", "--no-flip"), "leave out --no-flip"),
        (("a",), "expected two images or folders"),
        (("a", "b", "--pairs", "x.csv"), "one of these"),
        (("missing.png", "photo.png"), "missing.png does not exist"),
    ],
)
def test_what_cannot_be_compared_is_refused(given, told, there):
    assert call(predict.main, "a.pth", "faces", "-o", "out", *OPTIONS).returncode == 0
    rows = np.eye(2, dtype=np.float32)
    about = About("b", "0", "iresnet10", "", "float32", "faces", True, True, "float32", {})
    write_predicted(there / "other", Features(rows, rows[0], {}), ["a", "b"], about)
    for name, text in {
        "one": "alone",
        "bad": "p0/one.png,p1/one.png\np0/one.png,z",
        "empty": "a,b\n",
    }.items():
        (there / f"{name}.csv").write_text(text)
    ended = run(*given)
    assert ended.returncode == USER_ERROR_EXIT_CODE
    assert told in ended.stderr


def test_names_with_commas_and_quotes_are_read_back_as_they_were(tmp_path):
    names = ['a,"b".png', "plain.png"]
    side = Side(np.eye(2, dtype=np.float32), names)
    pairs = Pairs(side, side, np.array([0, 1]), np.array([1, 1]))
    pairs.write(tmp_path / "out.csv", pairs.cosines(threads=1), None)
    rows = list(csv.reader((tmp_path / "out.csv").read_text().splitlines()))
    assert rows[1:] == [[*names, "0.000000"], ["plain.png", "plain.png", "1.000000"]]
