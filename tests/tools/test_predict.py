"""predict: what it writes of every kind of input; stopped commands, ranks, damage, full disks."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from evaluation import predicted
from evaluation.kept_rows import FileRows
from evaluation.predicted import PredictedError, read_predicted
from facestream import USER_ERROR_EXIT_CODE
from tests.commands import call
from tests.ranks import run_ranks
from tests.tools.judging import png
from tests.tools.predicting import (
    COUNT,
    OPTIONS,
    SOURCES,
    faces,
    fill,
    run,
    stop_at_third_batch,
    write_parquet,
    written,
)
from tools.pack_rec import main as pack_main
from tools.predict import parser, predict
from training.distributed import World


@pytest.fixture
def there(tmp_path, monkeypatch):
    """A folder to be in, with a model and images of three people."""
    monkeypatch.chdir(tmp_path)
    fill(tmp_path)
    return tmp_path


def test_a_folder_becomes_rows_of_unit_length_names_and_norms(there):
    ended = run("faces")
    assert ended.returncode == 0, ended.stderr
    assert f"embedded      {COUNT} of {COUNT} images" in ended.stdout
    assert sorted(written("out")) == sorted(
        ["about.json", "embeddings.npy", "identities.txt", "labels.npy", "names.txt", "norms.npy"]
    )
    rows, names = np.load("out/embeddings.npy"), Path("out/names.txt").read_text().splitlines()
    assert (rows.shape, rows.dtype) == ((COUNT, 8), np.float32)
    assert np.linalg.norm(rows, axis=1) == pytest.approx(np.ones(COUNT))
    assert names == sorted(f"p{k % 3}/{k:02}.png" for k in range(COUNT))
    assert (np.load("out/norms.npy") > 0).all()
    assert Path("out/identities.txt").read_text() == "p0\np1\np2\n"
    assert np.load("out/labels.npy").tolist() == [int(name[1]) for name in names]


@pytest.mark.slow
def test_a_quality_is_written_beside_from_a_list_or_a_column(there):
    names = sorted(faces())
    (there / "quality.csv").write_text("".join(f"{name},{name[3:5]}\n" for name in names))
    expected = [float(name[3:5]) for name in names]
    assert run("faces", "--quality", "quality.csv").returncode == 0
    assert np.load("out/quality.npy").tolist() == expected
    source = write_parquet(there / "parquet")
    assert run(source, "--quality-column", "sharpness", output="columns").returncode == 0
    assert np.load("columns/quality.npy").tolist() == expected
    run("faces", output="columns")
    assert not Path("columns/quality.npy").exists(), "it is none of these images"
    ended = run("faces", "--quality-column", "sharpness")
    assert "--quality-column goes with .parquet files" in ended.stderr
    (there / "quality.csv").write_text("other.png,1\n")
    ended = run("faces", "--quality", "quality.csv", output="none")
    assert f"{COUNT} of {COUNT} images have no quality" in ended.stderr
    assert not Path("none").exists(), "it is known before anything is embedded"


@pytest.mark.slow
def test_labels_and_quality_are_in_every_form(there):
    (there / "quality.csv").write_text("".join(f"{name},0.5\n" for name in faces()))
    for form in ("npy", "parquet", "safetensors"):
        given = ("--format", form, "--quality", "quality.csv")
        assert run("faces", *given, output=form).returncode == 0
    labels = np.load("npy/labels.npy")
    tensors = load_file("safetensors/embeddings.safetensors")
    table = pq.read_table("parquet/embeddings.parquet")
    assert np.array_equal(tensors["labels"], labels)
    assert np.array_equal(table["label"].to_numpy(), labels)
    assert tensors["quality"].tolist() == table["quality"].to_pylist() == [0.5] * COUNT


def test_a_rec_s_labels_are_written_and_a_list_has_none(there):
    call(pack_main, "faces", "packed")
    run("packed")
    assert np.load("out/labels.npy").tolist() == [k // 7 for k in range(COUNT)]
    assert Path("out/identities.txt").read_text().split() == ["p0", "p1", "p2"]
    (there / "faces/list.lst").write_text("0\t7\tp2/02.png\n1\t3.0\tp0/00.png\n")
    run("faces/list.lst")
    assert np.load("out/labels.npy").tolist() == [7, 3]
    assert Path("out/names.txt").read_text().split() == ["p2/02.png", "p0/00.png"]
    (there / "faces/list.txt").write_text("p2/02.png\np0/00.png\n")
    run("faces/list.txt")
    assert not Path("out/labels.npy").exists()
    assert not Path("out/identities.txt").exists()


@pytest.mark.parametrize("form", ["npy", "parquet", "safetensors"])
@pytest.mark.parametrize("full", ["while it embeds", "while it writes"])
def test_a_full_disk_is_named_and_leaves_no_file_under_its_final_name(
    form, full, there, monkeypatch
):
    def no_room(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        if full == "while it embeds":
            patch.setattr(FileRows, "_write", no_room)
        else:
            patch.setattr(predicted, "_blocks", no_room)
        ended = run("faces", "--format", form)
    assert ended.returncode == USER_ERROR_EXIT_CODE
    assert "finds no room on the disk" in ended.stderr
    assert [path.name for path in Path("out").iterdir()] == ["unfinished"]
    assert run("faces", "--format", form).returncode == 0
    assert read_about("out")["images"] == COUNT


def read_about(folder: str) -> dict[str, object]:
    return json.loads(Path(folder, "about.json").read_text())


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
    stop_at_third_batch(monkeypatch, "faces")
    ended = run("faces")
    assert f"embedded      {COUNT - 8} of {COUNT} images" in ended.stdout
    assert written("out") == written("whole")


SHARED = ("faces", "parquet")  # files of their own, and row groups that are kept


def predict_in(world: World, folder: str) -> None:
    os.chdir(folder)
    for source in SHARED:
        given = ["a.pth", source, "-o", f"shared_{source}", *map(str, OPTIONS)]
        predict(parser().parse_args(given), world)


@pytest.mark.slow
def test_ranks_share_the_work_and_the_bytes_are_those_of_one(there):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for source in SHARED:
            if source != "faces":
                SOURCES[source](there / source)
            assert run(source, output=f"alone_{source}").returncode == 0
    finally:
        torch.set_num_threads(threads)
    run_ranks(predict_in, str(there), world_size=2, folder=there)
    for source in SHARED:
        assert written(f"shared_{source}") == written(f"alone_{source}")


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
    ("given", "message"),
    [
        ("missing", "does not exist"),
        ("empty", "holds no images"),
        ("faces.zip", "cannot be read as a .zip"),
        ("faces.tar.gz", "Unpack it first"),
        ("gone.txt", "1 of 2 images cannot be read: gone.png: gone.png does not"),
    ],
)
def test_what_cannot_be_embedded_is_refused(given, message, there):
    (there / "empty").mkdir()
    (there / "faces.zip").write_bytes(b"PK")
    (there / "faces.tar.gz").write_bytes(b"x")
    (there / "gone.txt").write_text("gone.png\nfaces/p0/00.png\n")
    ended = run(given)
    assert ended.returncode == USER_ERROR_EXIT_CODE
    assert message in ended.stderr


def test_a_folder_that_is_unfinished_or_damaged_is_not_read(there):
    run("faces")
    (there / "out/names.txt").write_text("one\n")
    with pytest.raises(PredictedError, match="found 1 names"):
        read_predicted(there / "out")
    (there / "out/about.json").unlink()
    with pytest.raises(PredictedError, match=r"has no about\.json"):
        read_predicted(there / "out")
