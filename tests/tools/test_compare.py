"""compare: two images, folders, lists of pairs, predicted names; what a card decides."""

from __future__ import annotations

import csv
import errno
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from evaluation.features import Features
from evaluation.predicted import About, write_predicted
from facestream import USER_ERROR_EXIT_CODE
from models import create_model
from pipeline import whole_file
from pipeline.align import TEMPLATE
from tests.commands import call
from tests.pipeline.faces import detectors
from tests.tools.judging import SIZE, png, write_model
from tools import compare, predict
from tools.sources.compared import Pairs, Side, best_matches, listing
from tools.sources.decision import Decision, decision_of
from training.frozen.card import Card, OperatingPoint, write_card
from training.frozen.model import digest_of_weights
from training.saving.reading import open_weights
from training.shipping.export import export
from training.shipping.shipped import Form

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


def with_card(path: Path, *points: OperatingPoint, digest: str | None = None) -> str:
    network = create_model("iresnet10", embedding_dim=8, image_size=SIZE, width=0.25)
    tensors = network.state_dict().items()
    save_file({name: tensor.contiguous() for name, tensor in tensors}, path)
    write_card(
        path,
        Card(
            *("iresnet10", 8, f"{SIZE},rgb,-1..1", "float32"),
            digest=digest_of_weights(network) if digest is None else digest,
            points=points,
        ),
    )
    return path.name


def test_an_image_is_like_itself_and_a_model_without_a_card_decides_nothing(there):
    ended = run("photo.png", "faces/p2/one.png")
    assert ended.returncode == 0, ended.stderr
    assert "cosine        1.0000\n" in ended.stdout
    assert "no decision: the model has no card with operating points. Export it" in ended.stdout
    assert run("photo.png", "faces/p1/one.png").stdout.split()[1] != "1.0000"


def test_a_card_of_too_few_pairs_says_how_many_it_takes():
    scores = {"val": {"accuracy": 0.8}}
    card = Card(*("iresnet10", 8, f"{SIZE},rgb,-1..1", "float32"), digest="abc", scores=scores)
    said = decision_of(card, of="x", digest="abc", flip=True, fmr=None, on="")
    assert "evaluated on val, with too few pairs" in str(said)
    assert "on 300 such pairs or more" in str(said)


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
    ("given", "message"),
    [
        (("x", "y", "--predicted", "out"), "x is no name in out/names.txt"),
        (("--pairs", "one.csv", "--predicted", "out"), "line 1: found 'alone', expected two names"),
        (("--pairs", "bad.csv", "--predicted", "out"), "line 2: 'z' is no name of an image"),
        (("--pairs", "empty.csv", "--predicted", "out"), "empty.csv has no pairs"),
        (("a", "b", "--predicted", "other"), "embeddings of two networks cannot be compared"),
        (("a", "b", "--predicted", "out", "--no-flip"), "leave out --no-flip"),
        (("a",), "expected two images or folders"),
        (("a", "b", "--pairs", "x.csv"), "one of these"),
        (("a", "b", *3 * ("--predicted", "out")), "expected --predicted once, or twice"),
        (("--identify", "photo.png", *2 * ("--predicted", "out")), "one of these"),
        (("missing.png", "photo.png"), "missing.png does not exist"),
    ],
)
def test_what_cannot_be_compared_is_refused(given, message, there):
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
    assert message in ended.stderr


def test_names_with_commas_and_quotes_are_read_back_as_they_were(tmp_path):
    names = ['a,"b".png', "plain.png"]
    side = Side(np.eye(2, dtype=np.float32), names)
    pairs = Pairs(side, side, np.array([0, 1]), np.array([1, 1]))
    with listing(tmp_path / "out.csv", decided=False) as listed:
        listed.add(pairs, pairs.cosines(threads=1), None)
    rows = list(csv.reader((tmp_path / "out.csv").read_text().splitlines()))
    assert rows[1:] == [[*names, "0.000000"], ["plain.png", "plain.png", "1.000000"]]


def test_cosines_of_rows_of_any_length_and_type_are_those_of_float64():
    random = np.random.default_rng(0)
    rows = random.standard_normal((40, 16)).astype(np.float16) * np.float16(3)
    rows[7] = 0
    first, second = random.integers(0, 40, (2, 3000))
    side = Side(rows, range(40))
    exact = rows.astype(np.float64)
    with np.errstate(invalid="ignore"):
        unit = exact / np.linalg.norm(exact, axis=1, keepdims=True)
    expected = (unit[first] * unit[second]).sum(1)
    assert np.isnan(expected).any()
    for part in (slice(0, 10), slice(None)):  # lengths are known of some, then of all
        found = Pairs(side, side, first[part], second[part]).cosines(threads=2)
        np.testing.assert_allclose(found, expected[part], atol=1e-6)


def export_onnx(folder: Path, name: str) -> str:
    """a.pth, as an .onnx file."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    export(open_weights(folder / "a.pth"), folder / name, form=Form())
    return name


@pytest.mark.slow
def test_files_of_one_network_are_one_space_and_say_that_they_are_two_files(there):
    """The weights, and what was exported from them."""
    model = export_onnx(there, "a.onnx")
    assert call(predict.main, "a.pth", "faces", "-o", "out", *OPTIONS).returncode == 0
    ended = run("p1/one.png", "p2/one.png", "--predicted", "out", model=model)
    assert ended.returncode == 0, ended.stderr
    assert "note          out was made with a.pth, another file of the same network" in ended.stdout
    assert call(predict.main, model, "faces", "-o", "other", *OPTIONS).returncode == 0
    both = run("p1/one.png", "p1/one.png", "--predicted", "out", "--predicted", "other")
    assert "cosine        1.0000\n" in both.stdout


def test_a_photo_is_looked_up_in_a_predicted_folder(there):
    assert call(predict.main, "a.pth", "faces", "-o", "out", *OPTIONS).returncode == 0
    ended = run("--identify", "photo.png", "--predicted", "out", "--top", 2)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("1.0000        photo.png  p2/one.png\n")


def test_photographs_are_cropped_by_landmarks_before_they_are_compared(there):
    marks = TEMPLATE * SIZE / 112
    moved = np.array(Image.open("photo.png"))
    wide = np.zeros((SIZE + 20, SIZE + 30, 3), np.uint8)
    wide[5 : 5 + SIZE, 10 : 10 + SIZE] = moved
    Image.fromarray(wide).save("faces/wide.png")
    Path("photo.png").rename("faces/photo.png")
    lines = [
        ",".join([name, *map(str, (marks + shift).ravel())])
        for name, shift in (("photo.png", (0, 0)), ("wide.png", (10, 5)))
    ]
    Path("marks.csv").write_text("\n".join(lines))
    given = ("faces/photo.png", "faces/wide.png", "--landmarks", "marks.csv")
    ended = run(*given)
    assert ended.returncode == 0, ended.stderr
    assert "cosine        1.0000\n" in ended.stdout
    refused = run("faces/photo.png", "faces/p1/one.png", "--landmarks", "marks.csv")
    assert refused.returncode == USER_ERROR_EXIT_CODE
    assert "one.png" in refused.stderr


def test_photographs_are_cropped_by_a_detector_before_they_are_compared(there):
    """The same face of two photos whose other parts differ."""
    pytest.importorskip("onnxruntime")
    face = detectors.Face((10, 20, 120, 110), np.add(TEMPLATE, [5, 10]), 0.9)
    detectors.write(there / "scrfd.onnx", detectors.scrfd([face]))
    random = np.random.default_rng(0)
    shown = random.integers(0, 256, (112, 112, 3), np.uint8)
    for name in ("one.png", "two.png"):
        pixels = random.integers(0, 256, (*detectors.CANVAS, 3), np.uint8)
        pixels[10:122, 5:117] = shown
        Image.fromarray(pixels).save(name)
    ended = run("one.png", "two.png", "--detector", "scrfd.onnx")
    assert ended.returncode == 0, ended.stderr
    assert float(ended.stdout.split("cosine")[1].split()[0]) > 0.999
    Path("none.onnx").write_bytes(b"")
    refused = run("one.png", "two.png", "--detector", "none.onnx")
    assert refused.returncode == USER_ERROR_EXIT_CODE
    assert "none.onnx" in refused.stderr


def test_a_full_disk_leaves_nothing_and_names_the_file(there, monkeypatch):
    assert call(predict.main, "a.pth", "faces", "-o", "out", *OPTIONS).returncode == 0
    Path("pairs.csv").write_text("p0/one.png,p1/one.png\n" * 9)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(whole_file, "sync", full)
    ended = run("--pairs", "pairs.csv", "--predicted", "out", "-o", "scores.csv")
    assert ended.returncode == USER_ERROR_EXIT_CODE
    assert "scores.csv finds no room on the disk" in ended.stderr
    assert not list(there.glob("scores.csv*"))


def test_a_card_of_other_weights_decides_nothing(there):
    model = with_card(there / "b.safetensors", POINT, digest="0123")
    ended = run("photo.png", "photo.png", model=model)
    assert "no decision: the card is of weights of digest 0123, and these are" in ended.stdout


@pytest.mark.parametrize(
    ("was", "becomes", "message"),
    [
        ('"fmr": 0.001', '"fmr": 0', "a threshold at an FMR of 0, expected above 0"),
        ('"set": "mine"', '"set": ""', "a threshold of the set '', expected the set's name"),
    ],
)
def test_a_card_made_by_hand_is_named_where_it_cannot_be(was, becomes, message, there):
    model = with_card(there / "b.safetensors", POINT)
    content = Path(model).read_bytes()
    assert content.count(was.replace('"', '\\"').encode()) == 1
    shorter, longer = (text.replace('"', '\\"').encode() for text in (becomes, was))
    Path(model).write_bytes(content.replace(longer, shorter.ljust(len(longer))))
    ended = run("photo.png", "photo.png", model=model)
    assert ended.returncode == USER_ERROR_EXIT_CODE
    assert message in ended.stderr
