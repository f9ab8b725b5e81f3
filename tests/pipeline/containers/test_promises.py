"""Order, resume, ranks, augmentation and damage: a set of any form is trained on as its .rec is."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.containers.open_records import open_records
from pipeline.dali_loader import Batch, Loader
from pipeline.order import BlockOrder
from pipeline.records.index import RecordIndex
from pipeline.records.write_set import pack_set
from synthetic import encode_jpeg, render

PEOPLE, IMAGES = 6, 5
FACES = [[encode_jpeg(render(k, n, seed=3)) for n in range(IMAGES)] for k in range(PEOPLE)]


def as_folder(root: Path) -> Path:
    for person, images in enumerate(FACES):
        (root / f"p{person}").mkdir(parents=True)
        for number, image in enumerate(images):
            (root / f"p{person}" / f"{number}.jpg").write_bytes(image)
    return root


FORMS: dict[str, Callable[[Path], Path]] = {"folder": as_folder}


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
