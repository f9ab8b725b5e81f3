"""The same faces as a folder and as archives, and predict, called on them."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import lmdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evaluation.kept_rows import FileRows
from tests.commands import Ended, call
from tests.tools.judging import png, write_model
from tools.predict import main

COUNT = 21
OPTIONS = ("--batch", 4, "--device", "cpu", "--precision", "fp32")


def fill(folder: Path) -> None:
    """A model, and images of three people."""
    write_model(folder / "a.pth", 0)
    for k in range(COUNT):
        path = folder / f"faces/p{k % 3}/{k:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(k))
    (folder / "faces/notes.txt").write_text("no image")


def run(*arguments: object, output: str = "out") -> Ended:
    return call(main, "a.pth", *arguments, "-o", output, *OPTIONS)


def written(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def faces() -> dict[str, bytes]:
    """What the folder holds."""
    return {f"p{k % 3}/{k:02}.png": png(k) for k in range(COUNT)}


def write_zip(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as opened:
        for name, content in faces().items():
            opened.writestr(name, content)
    return path


def write_lmdb(path: Path) -> Path:
    """As HSFace has it: number to msgpack of [image, label]."""
    with lmdb.open(str(path), map_size=1 << 24) as opened, opened.begin(write=True) as transaction:
        for place, (name, image) in enumerate(sorted(faces().items())):
            value = b"\x92\xc5" + len(image).to_bytes(2, "big") + image + bytes([int(name[1])])
            transaction.put(f"{place}".encode(), value)
        transaction.put(b"__len__", bytes([COUNT]))
    return path


def write_tars(folder: Path) -> Path:
    folder.mkdir()
    for shard in range(2):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for name, image in sorted(faces().items())[shard::2]:
                for ending, content in ((".png", image), (".cls", name[1].encode())):
                    about = tarfile.TarInfo(name.removesuffix(".png") + ending)
                    about.size = len(content)
                    tar.addfile(about, io.BytesIO(content))
    return folder


def write_parquet(folder: Path) -> Path:
    folder.mkdir()
    found = sorted(faces().items())
    for shard, rows in enumerate((found[:10], found[10:])):
        columns = {
            "image": pa.array([{"bytes": image, "path": name} for name, image in rows]),
            "label": pa.array([int(name[1]) for name, _ in rows]),
            "sharpness": pa.array([float(name[3:5]) for name, _ in rows]),
        }
        pq.write_table(pa.table(columns), folder / f"{shard}.parquet", row_group_size=4)
    return folder


SOURCES = {
    "faces.zip": write_zip,
    "faces.lmdb": write_lmdb,
    "tars": write_tars,
    "parquet": write_parquet,
}


def stop_at_third_batch(monkeypatch: pytest.MonkeyPatch, source: object) -> None:
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
            run(source)
    assert sorted(path.name for path in Path("out").iterdir()) == ["unfinished"]
