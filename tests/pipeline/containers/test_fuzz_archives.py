"""Archives with damage anywhere: images, faults of images and errors in words come of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from facestream import UserError
from pipeline.containers.lmdb_images import stored_lmdb
from pipeline.containers.parquet_images import stored_parquet
from pipeline.containers.stored import Stored
from pipeline.containers.webdataset import stored_webdataset
from pipeline.containers.zip_images import stored_zip
from pipeline.records.recordio import RecordError
from tests.damage import mutate
from tests.pipeline.containers import test_lmdb_images, test_webdataset, test_zip_images
from tests.tools.sources import test_parquet

ROUNDS = 100


def a_zip(folder: Path) -> Path:
    return test_zip_images.write(folder / "a.zip", test_zip_images.IMAGES)


def an_lmdb(folder: Path) -> Path:
    packed, jpegs = test_lmdb_images.packed, test_lmdb_images.JPEGS
    values = {f"{k}": packed(jpegs[k % 3], k, [1.5, k]) for k in range(30)}
    return test_lmdb_images.write(folder / "a", values)


def a_tar(folder: Path) -> Path:
    members = [(f"{k}.{kind}", b"%d" % k) for k in range(9) for kind in ("jpg", "cls", "txt")]
    return test_webdataset.shard(folder / "a.tar", members)


def a_parquet(folder: Path) -> Path:
    images = pa.array(test_parquet.IMAGES, test_parquet.STRUCT)
    return test_parquet.write(folder / "a.parquet", images, pa.array(list("xyxyx")))


KINDS = {
    "zip": (a_zip, stored_zip),
    "lmdb": (an_lmdb, stored_lmdb),
    "tar": (a_tar, lambda path: stored_webdataset([path])),
    "parquet": (a_parquet, lambda path: stored_parquet([path])),
}


@pytest.mark.parametrize("kind", KINDS)
def test_any_damage_is_noticed(kind: str, tmp_path: Path) -> None:
    write, open_it = KINDS[kind]
    path = write(tmp_path)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    noticed, images = 0, read_all(open_it, path)
    assert images > 0
    # At some damage of its footer pyarrow itself ends with a signal.
    left = int.from_bytes(whole[-8:-4], "little") + 8 if kind == "parquet" else 0
    whole, end = whole[: len(whole) - left], whole[len(whole) - left :]
    for _ in range(ROUNDS):
        path.write_bytes(mutate(whole, rng)[0] + end)
        try:
            noticed += read_all(open_it, path) < images
        except UserError:
            noticed += 1
    assert noticed > ROUNDS / 10


def read_all(open_it: Callable[[Path], Stored], path: Path) -> int:
    """How many images can be read."""
    found = open_it(path)
    found.labels()
    read = 0
    for place in range(len(found.names)):
        try:
            read += bool(found.read(place))
        except RecordError:
            continue
    return read
