"""predict: what it writes of folders, lists and .rec files; stopped commands, ranks, bad images."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from evaluation.kept_rows import FileRows
from evaluation.predicted import PredictedError, read_predicted
from facestream import USER_ERROR_EXIT_CODE
from tests.commands import call
from tests.ranks import run_ranks
from tests.tools.test_evaluate import png, write_model
from tools.pack_rec import main as pack_main
from tools.predict import main, parser, predict
from training.distributed import World

COUNT = 21
OPTIONS = ("--batch", 4, "--device", "cpu", "--precision", "fp32")


@pytest.fixture
def there(tmp_path, monkeypatch):
    """A folder to be in, with a model and images of three people."""
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "a.pth", 0)
    for k in range(COUNT):
        path = tmp_path / f"faces/p{k % 3}/{k:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(k))
    (tmp_path / "faces/notes.txt").write_text("no image")
    return tmp_path


def run(*arguments: object, output: str = "out"):
    return call(main, "a.pth", *arguments, "-o", output, *OPTIONS)


def written(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def test_a_folder_becomes_rows_of_unit_length_names_and_norms(there):
    ended = run("faces")
    assert ended.returncode == 0, ended.stderr
    assert f"embedded      {COUNT} of {COUNT} images" in ended.stdout
    assert sorted(written("out")) == ["about.json", "embeddings.npy", "names.txt", "norms.npy"]
    rows, names = np.load("out/embeddings.npy"), Path("out/names.txt").read_text().splitlines()
    assert (rows.shape, rows.dtype) == ((COUNT, 8), np.float32)
    assert np.linalg.norm(rows, axis=1) == pytest.approx(np.ones(COUNT))
    assert names == sorted(f"p{k % 3}/{k:02}.png" for k in range(COUNT))
    assert (np.load("out/norms.npy") > 0).all()


def test_rows_as_the_model_gives_them_have_the_norms_where_nothing_is_mirrored(there):
    run("faces", "--raw", "--no-flip")
    rows = np.load("out/embeddings.npy")
    assert np.linalg.norm(rows, axis=1) == pytest.approx(np.load("out/norms.npy"))
    about = json.loads(Path("out/about.json").read_text())
    assert (about["flip"], about["normalized"]) == (False, False)
    assert about["space"] == about["digest"]
    run("faces", "--no-flip", output="unit")
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    assert np.load("unit/embeddings.npy") == pytest.approx(unit, abs=1e-6)


def test_a_list_is_embedded_in_its_order_from_its_own_folder(there, monkeypatch):
    (there / "faces/list.txt").write_text("p2/02.png\np0/00.png\n")
    run("faces")
    run("faces/list.txt", output="listed")
    every = read_predicted(Path("out"))
    listed = read_predicted(Path("listed"))
    assert listed.names == ["p2/02.png", "p0/00.png"]
    for place, name in enumerate(listed.names):
        assert listed.embeddings[place] == pytest.approx(
            every.embeddings[list(every.names).index(name)], abs=1e-6
        )


def test_a_rec_is_embedded_like_the_folder_that_it_was_packed_from(there):
    assert call(pack_main, "faces", "packed").returncode == 0
    assert run("packed", output="of_rec").returncode == 0
    run("faces")
    assert np.load("of_rec/embeddings.npy") == pytest.approx(
        np.load("out/embeddings.npy"), abs=1e-6
    )


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_every_form_has_the_same_numbers(dtype, there):
    for form in ("npy", "parquet", "safetensors"):
        ended = run("faces", "--format", form, "--dtype", dtype, output=form)
        assert ended.returncode == 0, ended.stderr
    rows, norms = np.load("npy/embeddings.npy"), np.load("npy/norms.npy")
    assert rows.dtype == dtype
    tensors = load_file("safetensors/embeddings.safetensors")
    assert np.array_equal(tensors["embeddings"], rows)
    assert np.array_equal(tensors["norms"], norms)
    table = pq.read_table("parquet/embeddings.parquet")
    assert np.array_equal(np.stack(table["embedding"].to_numpy()), rows)
    assert table["name"].to_pylist() == Path("npy/names.txt").read_text().splitlines()
    assert np.array_equal(table["norm"].to_numpy(), norms)


def test_a_command_that_is_stopped_goes_on_and_writes_the_same_bytes(there, monkeypatch):
    run("faces", output="whole")

    class Stopped(BaseException):
        """As kill -9: nothing is tidied up."""

    add, batches = FileRows.add, []

    def stop(rows, block):
        if len(batches) == 2:
            rows._write(rows._end(rows.done), b"half a row")  # what a kill may leave
            raise Stopped
        batches.append(block)
        add(rows, block)

    with monkeypatch.context() as patch:
        patch.setattr(FileRows, "add", stop)
        with pytest.raises(Stopped):
            run("faces")
    assert sorted(path.name for path in Path("out").iterdir()) == ["unfinished"]
    ended = run("faces")
    assert f"embedded      {COUNT - 8} of {COUNT} images" in ended.stdout
    assert written("out") == written("whole")


def predict_in(world: World, folder: str) -> None:
    os.chdir(folder)
    predict(parser().parse_args(["a.pth", "faces", "-o", "shared", *map(str, OPTIONS)]), world)


@pytest.mark.slow
def test_ranks_share_the_work_and_the_bytes_are_those_of_one(there):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run("faces")
    finally:
        torch.set_num_threads(threads)
    run_ranks(predict_in, str(there), world_size=2, folder=there)
    assert written("shared") == written("out")


def test_damaged_images_are_named_and_their_rows_are_zeros(there):
    (there / "faces/p0/00.png").write_bytes(png(0)[:200])
    (there / "faces/p1/01.png").write_bytes(b"")
    ended = run("faces")
    assert ended.returncode == 0, ended.stderr
    assert "damaged       2, their rows are zeros: p0/00.png" in ended.stdout
    found = read_predicted(Path("out"))
    assert list(found.about.damaged) == ["p0/00.png", "p1/01.png"]
    zeros = [name for name, row in zip(found.names, found.embeddings) if not row.any()]
    assert zeros == list(found.about.damaged)
    strict = run("faces", "--strict", output="strict")
    assert strict.returncode == USER_ERROR_EXIT_CODE
    assert "2 of 21 images are bad: p0/00.png" in strict.stderr
    assert not Path("strict/about.json").exists()


def test_photographs_are_refused_with_the_way_to_crop_them(there):
    (there / "photos").mkdir()
    Image.new("RGB", (50, 40)).save(there / "photos/a.png")
    ended = run("photos")
    assert ended.returncode == USER_ERROR_EXIT_CODE
    assert "its images are 50×40 pixels, and the model takes 32×32" in ended.stderr
    assert "--detector" in ended.stderr


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("missing", "does not exist"),
        ("empty", "holds no images"),
        ("faces.zip", "Unpack it first"),
        ("gone.txt", "1 of 2 images cannot be read: gone.png: gone.png does not"),
    ],
)
def test_what_cannot_be_embedded_is_refused(given, told, there):
    (there / "empty").mkdir()
    (there / "faces.zip").write_bytes(b"PK")
    (there / "gone.txt").write_text("gone.png\nfaces/p0/00.png\n")
    ended = run(given)
    assert ended.returncode == USER_ERROR_EXIT_CODE
    assert told in ended.stderr


def test_a_folder_that_is_unfinished_or_damaged_is_not_read(there):
    run("faces")
    (there / "out/names.txt").write_text("one\n")
    with pytest.raises(PredictedError, match="found 1 names"):
        read_predicted(there / "out")
    (there / "out/about.json").unlink()
    with pytest.raises(PredictedError, match=r"has no about\.json"):
        read_predicted(there / "out")
