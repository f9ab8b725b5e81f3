"""predict on archives: the rows are those of the folder, whatever stops or damages it."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import lmdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from facestream import USER_ERROR_EXIT_CODE
from pipeline.align import TEMPLATE
from tests.tools.predicting import COUNT, SOURCES, faces, fill, run, stop_at_third_batch, written


@pytest.fixture
def there(tmp_path, monkeypatch):
    """A folder to be in, with a model and images of three people."""
    monkeypatch.chdir(tmp_path)
    fill(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("name", SOURCES)
def test_an_archive_is_embedded_like_the_folder_that_it_was_made_of(name, there):
    ended = run(SOURCES[name](there / name), output="of_archive")
    assert ended.returncode == 0, ended.stderr
    assert f"embedded      {COUNT} of {COUNT} images" in ended.stdout
    run("faces")
    order = np.argsort([k for shard in range(2) for k in range(shard, COUNT, 2)])
    order = order if name == "tars" else np.arange(COUNT)
    rows = np.load("of_archive/embeddings.npy")[order]
    assert rows == pytest.approx(np.load("out/embeddings.npy"), abs=1e-5)
    assert np.array_equal(np.load("of_archive/labels.npy")[order], np.load("out/labels.npy"))
    names = Path("of_archive/names.txt").read_text().splitlines()
    first = {"faces.zip": "p0/00.png", "faces.lmdb": "0", "tars": "0.tar/p0/00"}
    assert names[0] == first.get(name, "0.parquet:0")
    assert len(set(names)) == COUNT


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("faces.zip", "a folder for each person"),
        ("faces.lmdb", "msgpack of [image, label]"),
        ("faces.tar", "A .cls of each sample"),
        ("faces.parquet", "A column label"),
        ("faces.txt", "a folder for each person"),
    ],
)
def test_where_input_does_not_say_who_is_who_what_would_fits_its_kind(name, hint, there):
    image = faces()["p0/00.png"]
    path = there / name
    if name == "faces.zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("00.png", image)
    elif name == "faces.lmdb":
        with lmdb.open(str(path), map_size=1 << 24) as opened, opened.begin(write=True) as put:
            put.put(b"00", image)
    elif name == "faces.tar":
        with tarfile.open(path, "w") as tar:
            about = tarfile.TarInfo("00.png")
            about.size = len(image)
            tar.addfile(about, io.BytesIO(image))
    elif name == "faces.parquet":
        pq.write_table(pa.table({"image": pa.array([{"bytes": image, "path": "00.png"}])}), path)
    else:
        (there / "00.png").write_bytes(image)
        path.write_text("00.png\n")
    (line,) = (one for one in run(path).stdout.splitlines() if one.startswith("labels "))
    assert line.startswith("labels        none: INPUT does not say who is who. ")
    assert hint in line


@pytest.mark.slow
@pytest.mark.parametrize("name", SOURCES)
def test_a_command_on_an_archive_that_is_stopped_goes_on_to_the_same_bytes(
    name, there, monkeypatch
):
    source = SOURCES[name](there / name)
    run(source, output="whole")
    stop_at_third_batch(monkeypatch, source)
    ended = run(source)
    assert f"embedded      {COUNT - 8} of {COUNT} images" in ended.stdout
    assert written("out") == written("whole")


@pytest.mark.slow
@pytest.mark.parametrize("name", SOURCES)
def test_photographs_in_an_archive_are_cropped_by_their_names(name, there):
    """By landmarks that leave everything where it is."""
    source = SOURCES[name](there / name)
    run(source, output="as_they_are")
    names = Path("as_they_are/names.txt").read_text().splitlines()
    points = (TEMPLATE * 32 / 112).ravel()
    lines = [",".join([name, *(f"{number:.6f}" for number in points)]) for name in names[:-1]]
    (there / "marks.csv").write_text("\n".join(lines) + "\n")
    ended = run(source, "--landmarks", "marks.csv")
    assert ended.returncode == 0, ended.stderr
    assert "damaged       1, their rows are zeros" in ended.stdout
    assert f"{names[-1]} no face" in ended.stdout
    cosines = (np.load("out/embeddings.npy") * np.load("as_they_are/embeddings.npy")).sum(axis=1)
    assert cosines[:-1] == pytest.approx(np.ones(COUNT - 1), abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", SOURCES)
def test_an_archive_that_is_damaged_or_empty_is_named_and_leaves_nothing(name, there):
    source = SOURCES[name](there / name)
    for path in [source] if source.is_file() else sorted(source.iterdir()):
        if path.name == "lock.mdb":
            continue
        whole = path.read_bytes()
        for content in (whole[: len(whole) // 2], b"", b"something else" * 1000):
            path.write_bytes(content)
            ended = run(source)
            assert ended.returncode == USER_ERROR_EXIT_CODE, ended.stdout
            assert path.name in ended.stderr or source.name in ended.stderr
            assert not Path("out").exists()
        path.write_bytes(whole)
