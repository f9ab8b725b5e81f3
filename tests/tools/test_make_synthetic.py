"""make_synthetic: a set that trains and verifies, drawn once."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from evaluation.pair_set import read_bin
from pipeline.records.index import open_index

ROOT = Path(__file__).parents[2]


def command(folder: Path, images: int = 4) -> subprocess.CompletedProcess[str]:
    sizes = ["--identities", "6", "--images", str(images), "--pairs", "20", "--size", "48"]
    script = str(ROOT / "tools/make_synthetic.py")
    return subprocess.run(
        [sys.executable, script, str(folder), *sizes], capture_output=True, text=True, cwd="/"
    )


@pytest.mark.slow
def test_a_set_is_drawn_once_and_holds_what_was_asked_for(tmp_path):
    first = command(tmp_path / "set")
    assert first.returncode == 0, first.stderr
    assert len(first.stdout.splitlines()) == 1, "no bar where nobody watches"
    index = open_index(tmp_path / "set")
    assert (len(index), index.summary.identities) == (24, 6)
    pairs = read_bin(tmp_path / "set" / "val.bin")
    assert (len(pairs.images), pairs.same.sum()) == (40, 10)
    for encoded in (bytes(index.image(0)), pairs.images[0]):
        with Image.open(io.BytesIO(encoded)) as image:
            assert (image.format, image.size) == ("JPEG", (48, 48))
    assert (tmp_path / "set" / "faces.png").exists()
    before = (tmp_path / "set" / "train.rec").stat().st_mtime_ns
    assert "already holds this set" in command(tmp_path / "set").stdout
    assert (tmp_path / "set" / "train.rec").stat().st_mtime_ns == before
    assert command(tmp_path / "set", images=5).returncode == 0, "other settings, another set"
    assert len(open_index(tmp_path / "set")) == 30


@pytest.mark.slow
def test_a_set_whose_drawing_was_interrupted_is_drawn_again(tmp_path):
    (tmp_path / "synthetic.json").write_bytes(b'"unfinished"\xff')
    (tmp_path / "train.rec").write_bytes(b"half a set")
    assert command(tmp_path).returncode == 0
    assert len(open_index(tmp_path)) == 24


def test_a_set_that_is_not_its_own_is_not_drawn_over(tmp_path):
    (tmp_path / "train.rec").write_bytes(b"precious")
    done = command(tmp_path)
    assert done.returncode == 2
    assert "train.rec exists and was not drawn here" in done.stderr
    assert (tmp_path / "train.rec").read_bytes() == b"precious"
