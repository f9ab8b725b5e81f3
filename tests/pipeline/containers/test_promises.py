"""Order, resume, ranks, augmentation and damage: a set of any form is trained on as its .rec is."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.containers.open_records import open_records
from pipeline.dali_loader import Batch, Loader
from pipeline.order import BlockOrder
from pipeline.records.index import RecordIndex
from pipeline.records.write_set import pack_set
from synthetic import encode_jpeg, render
from tests.pipeline.containers.test_lmdb_images import write as write_lmdb
from tests.pipeline.containers.test_webdataset import shard as write_shard

PEOPLE, IMAGES = 6, 5
FACES = [[encode_jpeg(render(k, n, seed=3)) for n in range(IMAGES)] for k in range(PEOPLE)]


def as_folder(root: Path) -> Path:
    for person, images in enumerate(FACES):
        (root / f"p{person}").mkdir(parents=True)
        for number, image in enumerate(images):
            (root / f"p{person}" / f"{number}.jpg").write_bytes(image)
    return root


def as_zip(root: Path, how: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(root.with_suffix(".zip"), "w", how) as opened:
        for person, images in enumerate(FACES):
            for number, image in enumerate(images):
                opened.writestr(f"faces/p{person}/{number}.jpg", image)
    return root.with_suffix(".zip")


def as_deflated_zip(root: Path) -> Path:
    return as_zip(root, zipfile.ZIP_DEFLATED)


def as_streamed_zip(root: Path) -> Path:
    """As programs write one into a pipe: sums and sizes come after the images."""
    path = root.with_suffix(".zip")
    pipe = io.BytesIO()
    pipe.seekable = lambda: False
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as opened:
        for person, images in enumerate(FACES):
            for number, image in enumerate(images):
                opened.writestr(f"p{person}/{number}.jpg", image)
    path.write_bytes(pipe.getvalue())
    return path


def as_lmdb(root: Path) -> Path:
    """msgpack of [image, label], as HSFace has it."""
    values = {}
    for person, images in enumerate(FACES):
        for number, image in enumerate(images):
            head = b"\x92\xc5" + len(image).to_bytes(2, "big")
            values[f"{person * IMAGES + number:08d}"] = head + image + bytes([person])
    write_lmdb(root, values)
    return root


def as_tars(root: Path) -> Path:
    """Two shards, the people in turn."""
    root.mkdir()
    for shard in range(2):
        members = []
        for person in range(PEOPLE)[shard * 3 : shard * 3 + 3]:
            for number, image in enumerate(FACES[person]):
                name = f"{person}_{number}"
                members += [(f"{name}.jpg", image), (f"{name}.cls", b"%d" % person)]
        write_shard(root / f"{shard}.tar", members)
    return root


def as_parquet(root: Path, compression: str = "none") -> Path:
    """Two files of small row groups, as on Hugging Face's hub."""
    (root / "data").mkdir(parents=True)
    for shard in range(2):
        people = range(PEOPLE)[shard * 3 : shard * 3 + 3]
        images = [{"bytes": image, "path": None} for person in people for image in FACES[person]]
        labels = [person for person in people for _ in range(IMAGES)]
        pq.write_table(
            pa.table({"image": images, "label": labels}),
            root / "data" / f"train-{shard:05d}-of-00002.parquet",
            row_group_size=4,
            compression=compression,
        )
    return root


def as_compressed_parquet(root: Path) -> Path:
    return as_parquet(root, "gzip")


FORMS: dict[str, Callable[[Path], Path]] = {
    "folder": as_folder,
    "zip": as_zip,
    "deflated zip": as_deflated_zip,
    "streamed zip": as_streamed_zip,
    "LMDB": as_lmdb,
    "tars": as_tars,
    "parquet": as_parquet,
    "compressed parquet": as_compressed_parquet,
}


@pytest.fixture(params=FORMS)
def pair(request, tmp_path) -> tuple[RecordIndex, RecordIndex]:
    """The same faces as a .rec and in another form."""
    pack_set(tmp_path / "rec", FACES)
    form = FORMS[request.param]
    return open_records(tmp_path / "rec"), open_records(form(tmp_path / "set"))


def loader(index: RecordIndex, *, rank: int = 0, world_size: int = 1) -> Loader:
    return Loader(
        index,
        global_batch=8,
        rank=rank,
        world_size=world_size,
        seed=5,
        order=BlockOrder(len(index), seed=5, block=2, window=3),
        device=torch.device("cpu"),
        augment=("flip",),
        max_bad_fraction=0.2,
    )


def batches(index: RecordIndex, *, epoch: int = 0, step: int = 0, **ranks: int) -> list[Batch]:
    with closing(loader(index, **ranks).stream(epoch, step)) as stream:
        return list(islice(stream, 4))


def assert_same(found: list[Batch], expected: list[Batch]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
        assert (one.records == other.records).all()


def test_every_image_lies_where_it_does_in_the_rec(pair):
    rec, other = pair
    faces = [image for images in FACES for image in images]
    assert [other.image(i).tobytes() for i in range(len(other))] == faces
    assert (other.records["label"] == rec.records["label"]).all()


def test_every_image_has_a_name_of_its_own_and_messages_say_it(pair):
    _, other = pair
    names = [other.file.name(record) for record in other.records]
    assert len(set(names)) == len(other)
    assert all(name in other.place(number) for number, name in enumerate(names))


def test_the_stream_is_that_of_the_rec_on_any_rank_and_after_a_resume(pair):
    rec, other = pair
    assert_same(batches(other), batches(rec))
    for rank in (0, 1):
        place = {"rank": rank, "world_size": 2}
        assert_same(batches(other, **place), batches(rec, **place))
    assert_same(batches(other, epoch=1, step=2), batches(rec, epoch=1, step=2))


def test_an_image_that_cannot_be_read_costs_one_sample(pair, monkeypatch, caplog):
    _, other = pair
    sources = other.file.sources

    def with_a_hole(records: np.ndarray) -> list[Callable[[], bytes]]:
        hole = other.records["offset"][3]
        return [
            (lambda: b"damaged") if record["offset"] == hole else source
            for record, source in zip(records, sources(records))
        ]

    monkeypatch.setattr(other.file, "sources", with_a_hole)
    seen = np.concatenate([batch.records for batch in batches(other)[:3]])
    assert 3 not in seen
    assert other.place(3) in caplog.text
