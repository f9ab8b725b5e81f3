"""align, and the same options of pack_rec: photographs in, crops out, what has none counted."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.align import TEMPLATE, align
from pipeline.records.index import open_index
from tests.commands import call
from tests.pipeline.faces import detectors
from tests.pipeline.faces.detectors import CANVAS, Face
from tools.align import main
from tools.pack_rec import main as pack_rec

PLACES = {"a/1": (30, 20), "a/2": (90, 40), "b/1": (60, 10)}


def photo(name: str) -> np.ndarray:
    return np.random.default_rng(len(name) + ord(name[-1])).integers(
        0, 256, (200, 260, 3), np.uint8
    )


def row(name: str, points: np.ndarray) -> str:
    return ",".join([name, *map(str, points.ravel())])


@pytest.fixture
def photos(tmp_path) -> Path:
    """Three photographs of two people, one of them a JPEG, with marks.csv beside them."""
    rows = ["name,x1,y1,x2,y2,x3,y3,x4,y4,x5,y5"]
    for name, place in PLACES.items():
        suffix = ".jpg" if name == "b/1" else ".png"
        file = tmp_path / "photos" / f"{name}{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo(name)).save(file)
        rows.append(row(f"{name}{suffix}", TEMPLATE + place))
    (tmp_path / "marks.csv").write_text("\n".join(rows))
    return tmp_path / "photos"


def test_crops_by_a_list(photos, tmp_path):
    out = tmp_path / "crops"
    ended = call(main, photos, "-o", out, "--landmarks", tmp_path / "marks.csv")
    assert ended.returncode == 0
    files = sorted(str(file.relative_to(out)) for file in out.rglob("*.*"))
    assert files == ["a/1.png", "a/2.png", "b/1.jpg"]
    for name in ("a/1", "a/2"):
        crop = np.asarray(Image.open(out / f"{name}.png"))
        np.testing.assert_array_equal(crop, align(photo(name), TEMPLATE + PLACES[name]))
    with Image.open(tmp_path / "crops_sheet.png") as sheet:
        assert sheet.size == (3 * 120, 134)
    assert "fit error     0.0 pixels (median)" in ended.stdout
    assert "cropped 3 photographs" in ended.stdout
    assert "warning" not in ended.stdout


def test_another_order_is_warned_of_before_anything_is_cropped(photos, tmp_path):
    exchanged = TEMPLATE[[1, 0, 2, 4, 3]]
    rows = [row(f"{name}.png", exchanged + place) for name, place in PLACES.items()]
    (tmp_path / "marks.csv").write_text("\n".join(rows))
    ended = call(main, photos, "-o", tmp_path / "crops", "--landmarks", tmp_path / "marks.csv")
    warning, *_ = [line for line in ended.stdout.splitlines() if line.startswith("warning")]
    assert "left and right exchanged" in warning
    assert "2 crops have an error above 18 pixels" in ended.stdout


def test_faces_that_lie_on_their_side_are_counted(photos, tmp_path):
    """So do landmarks of a photo's stored pixels, where its EXIF note says that they are turned."""
    sideways = np.stack([TEMPLATE[:, 1] + 20, 150 - TEMPLATE[:, 0]], axis=1)
    rows = [row(f"{name}.png", TEMPLATE + 20) for name in ("a/1", "c/1", "c/2")]
    (tmp_path / "marks.csv").write_text("\n".join([*rows, row("a/2.png", sideways)]))
    ended = call(main, photos, "-o", tmp_path / "crops", "--landmarks", tmp_path / "marks.csv")
    assert "warning       1 faces lie turned by more than 60 degrees" in ended.stdout


def test_what_has_no_crop_is_counted(photos, tmp_path):
    Image.fromarray(photo("c")).save(photos / "unlisted.png")
    (photos / "a" / "2.png").write_bytes(b"\x89PNG damaged")
    (photos / "notes.txt").write_text("no photo, and not counted as one")
    with (tmp_path / "marks.csv").open("a") as marks:
        marks.write("\n" + row("none.jpg", TEMPLATE))
    ended = call(main, photos, "-o", tmp_path / "crops", "--landmarks", tmp_path / "marks.csv")
    assert "missing       1 images of the list: none.jpg (line 5)" in ended.stdout
    assert "no face: 1, first unlisted.png" in ended.stdout
    assert "a/2.png" in ended.stdout
    assert "cropped 2 photographs" in ended.stdout


@pytest.fixture
def detector(tmp_path) -> Path:
    """Finds two faces in photos of 192 × 128 pixels, whatever they show."""
    large = Face((90, 20, 170, 110), TEMPLATE * 0.7 + [92, 25], 0.7, stride=32)
    small = Face((10, 20, 60, 90), TEMPLATE * 0.4 + [12, 25], 0.9)
    return detectors.write(tmp_path / "scrfd.onnx", detectors.scrfd([large, small]))


def test_crops_by_a_detector(detector, tmp_path):
    pytest.importorskip("onnxruntime")
    pixels = np.random.default_rng(0).integers(0, 256, (*CANVAS, 3), np.uint8)
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels).save(tmp_path / "in" / "x.png")
    options = ("--detector", detector, "--size", 64)
    ended = call(main, tmp_path / "in", "-o", tmp_path / "out", *options)
    assert "scrfd.onnx, SCRFD" in ended.stdout
    assert "several faces, one taken: 1, first x.png" in ended.stdout
    crop = np.asarray(Image.open(tmp_path / "out" / "x.png"))
    expected = align(pixels, TEMPLATE * 0.7 + [92, 25], size=64)
    assert np.abs(crop.astype(int) - expected).max() <= 1
    ended = call(main, tmp_path / "in", "-o", tmp_path / "none", *options, "--several", "skip")
    assert ended.returncode == 2
    assert "none could be cropped" in ended.stderr


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{photos} -o {out}", "how are the faces found?"),
        ("{photos} -o {out} --no-face skip", "--no-face goes with --landmarks or --detector"),
        ("{photos} -o {out} --landmarks {marks} --several skip", "--several goes with --detector"),
        ("{photos} -o {out} --landmarks {marks} --detector {marks}", "not allowed with"),
        ("{photos} -o {photos} --landmarks {marks}", "not an empty folder"),
        ("{photos}/none -o {out} --landmarks {marks}", "does not exist"),
        ("{photos} -o {out} --landmarks {photos}/a/1.png", "is not text"),
        ("{photos} -o {out} --detector {marks}", "cannot be read"),
        ("{empty} -o {out} --landmarks {marks}", "holds no images"),
        ("{photos}/a -o {out} --landmarks {marks}", "none of its 3 images is there"),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_line(line, message, photos, tmp_path):
    (tmp_path / "empty").mkdir()
    words = line.format(
        photos=photos,
        out=tmp_path / "out",
        marks=tmp_path / "marks.csv",
        empty=tmp_path / "empty",
    )
    ended = call(main, *words.split())
    assert ended.returncode == 2
    assert message in ended.stderr


def test_no_face_may_be_an_error(photos, tmp_path):
    Image.fromarray(photo("c")).save(photos / "b" / "unlisted.png")
    marks = ("--landmarks", tmp_path / "marks.csv", "--no-face", "error")
    for ended in (
        call(main, photos, "-o", tmp_path / "crops", *marks),
        call(pack_rec, photos, tmp_path / "set", *marks),
    ):
        assert ended.returncode == 2
        assert "unlisted.png: no face is found in it" in ended.stderr


def test_pack_rec_packs_crops_of_photographs(photos, tmp_path):
    """A JPEG stays one; what has no face is passed over; names begin in the folder."""
    Image.fromarray(photo("c")).save(photos / "b" / "unlisted.png")
    ended = call(pack_rec, photos, tmp_path / "set", "--landmarks", tmp_path / "marks.csv")
    assert "packed 3 images of 2 identities" in ended.stdout
    assert "fit error     0.0 pixels" in ended.stdout
    assert "passed over   no face: 1" in ended.stdout
    index = open_index(tmp_path / "set")
    first = Image.open(io.BytesIO(index.image(0).tobytes()))
    np.testing.assert_array_equal(np.asarray(first), align(photo("a/1"), TEMPLATE + PLACES["a/1"]))
    assert Image.open(io.BytesIO(index.image(2).tobytes())).format == "JPEG"


def test_pack_rec_takes_a_list_of_images_with_a_list_of_landmarks(photos, tmp_path):
    (tmp_path / "set.lst").write_text("0\t0\ta/1.png\n1\t1\tb/1.jpg\n")
    options = ("--root", photos, "--landmarks", tmp_path / "marks.csv", "--size", 96)
    ended = call(pack_rec, tmp_path / "set.lst", tmp_path / "set", *options)
    assert "2 of 96 x 96" in ended.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--landmarks {marks} --resize 112", "leave out --crop and --resize"),
        ("--size 96", "--size"),
    ],
)
def test_pack_rec_refuses_options_that_do_not_go_together(options, message, photos, tmp_path):
    words = options.format(marks=tmp_path / "marks.csv").split()
    ended = call(pack_rec, photos, tmp_path / "set", *words)
    assert ended.returncode == 2
    assert message in ended.stderr
