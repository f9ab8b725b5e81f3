"""Folders of images as people have them: every image is taken, and what is none is counted."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.jpeg import decode_batch
from pipeline.passed_over import PassedOver
from pipeline.records.recordio import RecordError
from tools.pack_rec import Options, pack
from tools.sources.folders import read_folders

ROOT = Path(__file__).parents[3]
FACE = np.random.default_rng(0).integers(0, 255, (112, 112, 3), np.uint8)


def encoded(form: str) -> bytes:
    stored = io.BytesIO()
    Image.fromarray(FACE).save(stored, form)
    return stored.getvalue()


def read(source: Path, **options: bool) -> tuple[dict[str, list[str]], PassedOver]:
    """The names of the images of each identity, and what was passed over."""
    passed_over = PassedOver()
    identities = list(read_folders(source, passed_over, **options))
    return {
        identity.name: [str(Path(place).relative_to(source)) for place in identity.places]
        for identity in identities
    }, passed_over


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("x.jfif", "JPEG"),
        ("x.JPG", "JPEG"),
        ("x.jpg.jpeg", "JPEG"),
        ("x.tif", "TIFF"),
        ("x.TIFF", "TIFF"),
        ("x.ppm", "PPM"),
        ("x", "JPEG"),
        ("x", "PNG"),
        ("x", "WEBP"),
        ("x", "TIFF"),
    ],
)
def test_what_training_decodes_is_taken_as_the_bytes_that_it_is(tmp_path, name, form):
    (tmp_path / "ann").mkdir()
    (tmp_path / "ann" / name).write_bytes(encoded(form))
    [identity] = read_folders(tmp_path, PassedOver())
    assert identity.images == [encoded(form)]
    _, faults = decode_batch([lambda: identity.images[0]], size=112)
    assert not faults


@pytest.mark.parametrize(
    ("name", "form"), [("x.gif", "GIF"), ("x", "GIF"), ("x", "PPM"), ("x.jp2", "JPEG2000")]
)
def test_what_pillow_alone_reads_becomes_a_png_of_the_same_pixels(tmp_path, name, form):
    (tmp_path / "ann").mkdir()
    (tmp_path / "ann" / name).write_bytes(encoded(form))
    [identity] = read_folders(tmp_path, PassedOver())
    pixels, faults = decode_batch([lambda: identity.images[0]], size=112)
    assert not faults
    with Image.open(io.BytesIO(encoded(form))) as expected:
        assert np.array_equal(pixels[0], np.asarray(expected.convert("RGB")))


@pytest.fixture
def mixed(tmp_path) -> Path:
    """Two identities with images, and all that lies about in such folders."""
    source = tmp_path / "in"
    for folder in ("ann", "bob/deep/deeper", "cut", "none"):
        (source / folder).mkdir(parents=True)
    for name in ("ann/1.jpg", "bob/2.jpg", "bob/deep/3.jpg", "bob/deep/deeper/4.jpg"):
        (source / name).write_bytes(encoded("JPEG"))
    (source / "list.txt").write_text("ann")
    (source / "ann" / "empty.jpg").touch()
    (source / "ann" / "readme").write_text("no image")
    (source / "ann" / "torn.gif").write_bytes(encoded("GIF")[:50])
    (source / "ann" / "clip.mp4").write_bytes(b"film")
    (source / "ann" / ".hidden.jpg").write_bytes(b"x")
    (source / "ann" / "broken.jpg").symlink_to(source / "nowhere.jpg")
    (source / "cut" / "Thumbs.db").write_bytes(b"x")
    return source


def test_what_is_passed_over_is_counted_by_its_reason(mixed):
    taken, passed_over = read(mixed)
    assert taken == {"ann": ["ann/1.jpg"], "bob": ["bob/2.jpg"]}
    assert passed_over.counts == {
        "file beside the identities' folders": 1,
        "empty file": 1,
        "no image, and no suffix": 1,
        "not read by Pillow (.gif)": 1,
        "no image (.mp4)": 1,
        "no image (.db)": 1,
        "broken link": 1,
        "folder inside an identity's, see --nested": 1,
        "folder without an image": 1,
        "empty folder": 1,
    }


def test_nested_takes_the_folders_inside_after_the_folders_own(mixed):
    (mixed / "bob" / "deep" / "round").symlink_to(mixed / "bob")
    taken, passed_over = read(mixed, nested=True)
    assert taken["bob"] == ["bob/2.jpg", "bob/deep/3.jpg", "bob/deep/deeper/4.jpg"]
    assert passed_over.counts["link to a folder"] == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_a_pipe_is_not_waited_for(mixed):
    os.mkfifo(mixed / "ann" / "pipe.jpg")
    assert read(mixed)[1].counts["no file"] == 1


def test_where_nothing_is_an_image_all_reasons_are_named(mixed):
    for name in ("ann/1.jpg", "bob/2.jpg"):
        (mixed / name).unlink()
    with pytest.raises(RecordError, match=r"holds no images in its 4 folders.*empty folder: 1"):
        read(mixed)


def test_names_are_utf8_whatever_the_locale(tmp_path):
    (tmp_path / "in" / "Zoë").mkdir(parents=True)
    (tmp_path / "in" / "Zoë" / "é.jpg").write_bytes(encoded("JPEG"))
    (tmp_path / "in" / "Zoë" / "é.txt").touch()
    ascii_only = os.environ | {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for tool, source, output in [("pack_rec", "in", "Zoës"), ("unpack_rec", "Zoës", "out")]:
        done = subprocess.run(
            [sys.executable, ROOT / "tools" / f"{tool}.py", tmp_path / source, tmp_path / output],
            capture_output=True,
            env=ascii_only,
        )
        assert done.returncode == 0, done.stderr
    about = json.loads((tmp_path / "Zoës" / "train.json").read_text())
    assert about["names"] == ["Zoë"]
    assert about["source"] == [str(tmp_path / "in")]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["Zoë"]


def test_the_command_tells_what_it_passed_over_and_asks_to_remove_nothing(mixed, tmp_path, capsys):
    pack([mixed], tmp_path / "out", Options())
    message = capsys.readouterr().out
    assert f"passed over   empty file: 1, first {mixed / 'ann/empty.jpg'}\n" in message
    assert "packed 2 images of 2 identities" in message
    assert "remove" not in message
