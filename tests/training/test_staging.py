"""data.stage in a run: the same steps from the copy, by several ranks, and what is refused."""

from __future__ import annotations

import io
import itertools
import tarfile
import zipfile
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from pipeline.records.index import open_index
from pipeline.records.record_file import DataFile
from pipeline.staging.copier import Copier
from tests.clock import wait_until
from tests.pipeline.containers.test_lmdb_images import write as write_lmdb
from tests.ranks import run_ranks
from tests.training import tiny
from tests.training.steps import advance, build
from training.assembly import Plan, plan, stream_batches
from training.config import Config, ConfigError, override
from training.distributed import World
from training.staging import copying, use_copies
from training.step.precision import choose_precision


def planned(config: Config, world: World) -> Plan:
    return plan(config, world, choose_precision(world.device, "fp32"))


def batches(found: Plan) -> list[np.ndarray]:
    with closing(stream_batches(found.loader)) as stream:
        return [batch.images.numpy().copy() for batch in itertools.islice(stream, 7)]


@pytest.fixture
def staged(data, tmp_path) -> Config:
    (tmp_path / "near").mkdir()
    config = tiny.config(data, tmp_path / "run")
    return override(config, [f"data.stage={tmp_path / 'near'}", "data.order=block"])


@pytest.mark.slow
def test_a_run_reads_the_same_images_from_its_copy_and_the_next_one_from_nothing_else(
    world, staged, monkeypatch
):
    far = batches(planned(override(staged, ["data.stage="]), world))
    first = planned(staged, world)
    assert "0 of 1 files are there whole; 0.00 GB to copy" in first.staged
    (index,) = first.data.records.indexes
    with copying(staged, world, first.data, epoch=0, step=0):
        wait_until(lambda: index.file.copy.refresh() or index.file.copy.is_whole)
    found = batches(first)
    second = planned(staged, world)
    assert "1 of 1 files are there whole" in second.staged

    def gone(*_: int) -> bytes:
        raise AssertionError("the source is read")

    monkeypatch.setattr(DataFile, "read_source", gone)
    again = batches(second)
    for one, other, third in zip(far, found, again, strict=True):
        assert (one == other).all()
        assert (one == third).all()


def two_ranks(world: World, config: Config) -> tuple[list[np.ndarray], int]:
    """What a rank reads while the copy is made and after, and how many copiers it had."""
    begun, real = [], Copier.run
    Copier.run = lambda self, stop: begun.append(1) or real(self, stop)
    found = planned(config, world)
    copy = found.data.records.indexes[0].file.copy
    with copying(config, world, found.data, epoch=0, step=0):
        images = batches(found)
        wait_until(lambda: copy.refresh() or copy.is_whole)
    return images + batches(found), len(begun)


@pytest.mark.slow
def test_one_rank_of_a_node_copies_for_all(staged, tmp_path):
    config = override(staged, ["data.global_batch=8"])
    found = run_ranks(two_ranks, config, world_size=2, folder=tmp_path)
    assert [copiers for _, copiers in found] == [1, 0]
    for images, _ in found:
        for before, after in zip(images[:7], images[7:], strict=True):
            assert (before == after).all()


def test_a_run_that_ends_leaves_the_copying_to_the_next(world, staged, monkeypatch):
    """The copier is stopped and waited for."""
    ended = []

    def run(self, stop) -> None:
        stop.wait()
        ended.append(self)

    monkeypatch.setattr(Copier, "run", run)
    with copying(staged, world, planned(staged, world).data, epoch=0, step=0):
        assert not ended
    assert len(ended) == 1


@pytest.mark.slow
def test_a_run_copies_from_the_step_on_where_it_begins(world, staged, monkeypatch):
    trainer = build(override(staged, ["run.epochs=1", "optim.warmup_epochs=0"]), world)
    advance(trainer, world, 2)
    copied = []
    monkeypatch.setattr(Copier, "run", lambda self, stop: copied.extend(self._order))
    monkeypatch.setattr(
        "training.staging.pieces_by_need", lambda which, *, position, **_: [which, position]
    )
    trainer.run()
    assert copied == [0, 2 * staged.data.global_batch]


def test_a_folder_of_single_images_is_refused(world, staged):
    records = planned(staged, world).data.records
    records.indexes[0].file = None  # as any other Store
    with pytest.raises(ConfigError, match=r"data.stage: .*folder of single images, expected a set"):
        use_copies(staged, world, records)


def as_zip(root: Path, images: list[tuple[str, bytes]]) -> str:
    with zipfile.ZipFile(root / "set.zip", "w") as archive:
        for name, content in images:
            archive.writestr(name, content)
    return str(root / "set.zip")


def as_tars(root: Path, images: list[tuple[str, bytes]]) -> str:
    """Two shards."""
    (root / "shards").mkdir()
    for shard in range(2):
        with tarfile.open(root / "shards" / f"{shard}.tar", "w") as archive:
            for number, (name, content) in enumerate(images[shard::2]):
                label = name.partition("/")[0].encode()
                for suffix, part in (("png", content), ("cls", label)):
                    member = tarfile.TarInfo(f"{shard}{number:03}.{suffix}")
                    member.size = len(part)
                    archive.addfile(member, io.BytesIO(part))
    return str(root / "shards")


def as_lmdb(root: Path, images: list[tuple[str, bytes]]) -> str:
    return str(write_lmdb(root / "lmdb", dict(images)))


def as_parquet(root: Path, images: list[tuple[str, bytes]], *, compression: str = "none") -> str:
    """Two shards."""
    (root / "shards").mkdir()
    for shard in range(2):
        table = {
            "image": [content for _, content in images[shard::2]],
            "label": [int(name.partition("/")[0]) for name, _ in images[shard::2]],
        }
        path = root / "shards" / f"{shard}.parquet"
        # Statistics would have images of their own, as they are.
        options = {"compression": compression, "row_group_size": 2, "write_statistics": False}
        pyarrow.parquet.write_table(pyarrow.table(table), path, **options)
    return str(root / "shards")


def as_packed_parquet(root: Path, images: list[tuple[str, bytes]]) -> str:
    """Images that gzip makes smaller: pyarrow reads them, a row group at a time."""
    loose = []
    for number, (name, _) in enumerate(images):
        file = io.BytesIO()
        Image.new("RGB", (tiny.SIZE, tiny.SIZE), (3 * number, 0, 0)).save(
            file, "PNG", compress_level=0
        )
        loose.append((name, file.getvalue()))
    return as_parquet(root, loose, compression="gzip")


def as_two_recs(root: Path, _: list[tuple[str, bytes]]) -> str:
    """Of the same content: each has a name of its own, and a time."""
    return f"[{','.join(str(tiny.write_set(root / name)) for name in 'ab')}]"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "suffix", "files"),
    [
        (as_zip, "zip", 1),
        (as_tars, "tar", 2),
        (as_lmdb, "mdb", 1),
        (as_parquet, "parquet", 2),
        (as_packed_parquet, "parquet", 2),
        (as_two_recs, "rec", 2),
    ],
)
def test_other_forms_in_files_are_staged_too(
    world, staged, data, tmp_path, monkeypatch, form, suffix, files
):
    index = open_index(data)
    images = [
        (f"{index.records['label'][i]}/{i}.png", index.image(i).tobytes())
        for i in range(len(index))
    ]
    config = override(staged, [f"data.train={form(tmp_path, images)}"])
    far = batches(planned(override(config, ["data.stage="]), world))
    first = planned(config, world)
    assert f"0 of {files} files are there whole" in first.staged
    with copying(config, world, first.data, epoch=0, step=0):
        wait_until(lambda: len(list((tmp_path / "near").glob(f"*/*.{suffix}"))) == files)
    second = planned(config, world)
    assert f"{files} of {files} files are there whole" in second.staged

    def gone(*_: int) -> bytes:
        raise AssertionError("the source is read")

    monkeypatch.setattr(DataFile, "read_source", gone)
    for file in tmp_path.rglob(f"*.{suffix}"):
        if tmp_path / "near" not in file.parents and file.is_file():
            file.write_bytes(bytes(file.stat().st_size))  # whoever has opened it, too
    for one, other in zip(far, batches(second), strict=True):
        assert (one == other).all()


def test_too_little_room_names_the_setting(world, staged, monkeypatch):
    monkeypatch.setattr("pipeline.staging.room.gigabytes", str)
    monkeypatch.setattr("os.statvfs", lambda path: type("disk", (), {"f_bavail": 1, "f_frsize": 1}))
    with pytest.raises(ValueError, match=r"are to be copied there, 1 GB are free.*data\.stage"):
        planned(staged, world)
