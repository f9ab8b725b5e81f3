"""Rows of parquet files in any order; what is damaged or too large is named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.containers import parquet_images
from pipeline.containers.parquet_images import column_of, stored_parquet
from pipeline.records.recordio import RecordError
from tests.tools.sources.test_parquet import IMAGES, STRUCT, write


def files(folder: Path, labels: pa.Array | None = None, **columns: pa.Array) -> list[Path]:
    images = pa.array(IMAGES, STRUCT)
    labels = pa.array([3, 1, 3, None, 1]) if labels is None else labels
    return [write(folder / f"{k}.parquet", images, labels, **columns) for k in range(2)]


def test_rows_are_read_in_any_order_by_any_thread(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_images, "_KEPT", 1)
    found = stored_parquet(files(tmp_path))
    assert list(found.names) == [f"{k}.parquet:{row}" for k in range(2) for row in range(5)]
    order = np.random.default_rng(0).permutation(10).tolist() * 5
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(found.read, order))
    assert read == [IMAGES[place % 5]["bytes"] for place in order]


def test_plain_binary_is_read_too(tmp_path):
    path = write(tmp_path / "a.parquet", pa.array([b"1", b"2", b"3"]), pa.array(["x", "y", "x"]))
    found = stored_parquet([path])
    assert [found.read(place) for place in range(3)] == [b"1", b"2", b"3"]
    assert (found.labels().numbers.tolist(), found.labels().names) == ([0, 1, 0], ["x", "y"])


def test_labels_are_numbers_or_what_the_file_calls_them_and_need_not_be_there(tmp_path):
    assert stored_parquet(files(tmp_path)).labels().numbers.tolist() == [3, 1, 3, -1, 1] * 2
    feature = {"label": {"names": ["zoe", "ann"], "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": feature}})}
    path = write(
        tmp_path / "c.parquet", pa.array(IMAGES[:2], STRUCT), pa.array([0, 1]), metadata=metadata
    )
    labels = stored_parquet([path]).labels()
    assert (labels.numbers.tolist(), labels.names) == ([1, 0], ["ann", "zoe"])
    bare = pa.table({"image": pa.array(IMAGES, STRUCT)})
    pa.parquet.write_table(bare, tmp_path / "bare.parquet")
    assert stored_parquet([tmp_path / "bare.parquet"]).labels() is None
    with pytest.raises(RecordError, match="has no column 'who'"):
        stored_parquet([tmp_path / "bare.parquet"], label_column="who")


def test_labels_are_read_some_at_a_time_across_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_images, "_LABELS", 2)
    sizes: list[int] = []
    iter_batches = pa.parquet.ParquetFile.iter_batches

    def counted(*arguments: Any, **named: Any) -> Iterator[pa.RecordBatch]:
        for batch in iter_batches(*arguments, **named):
            sizes.append(len(batch))
            yield batch

    monkeypatch.setattr(pa.parquet.ParquetFile, "iter_batches", counted)
    paths = files(tmp_path)
    assert stored_parquet(paths).labels().numbers.tolist() == [3, 1, 3, -1, 1] * 2
    assert (max(sizes), sum(sizes)) == (2, 10)
    names = {"info": {"features": {"label": {"names": ["zoe", "ann"], "_type": "ClassLabel"}}}}
    metadata = {"huggingface": json.dumps(names)}
    labels = pa.array([0, 1, 1, 2, 0])
    path = write(tmp_path / "c.parquet", pa.array(IMAGES, STRUCT), labels, metadata=metadata)
    with pytest.raises(RecordError, match=r"c\.parquet, row 3: label 2, but .* 2 classes"):
        stored_parquet([path]).labels()


def test_rows_that_arrow_leaves_out_of_a_column_are_damage(tmp_path, monkeypatch):
    """As it does at some damage of a page; labels and numbers after them would be other images'."""
    path = write(tmp_path / "a.parquet", pa.array(IMAGES, STRUCT), pa.array([1] * 5))
    read, iter_batches = pa.parquet.ParquetFile.read, pa.parquet.ParquetFile.iter_batches
    monkeypatch.setattr(
        pa.parquet.ParquetFile,
        "iter_batches",
        lambda file, rows, **named: list(iter_batches(file, 2, **named))[:-1],
    )
    monkeypatch.setattr(
        pa.parquet.ParquetFile, "read", lambda file, **named: read(file, **named).slice(0, 4)
    )
    complaint = r"a\.parquet is damaged: of 5 rows in a column, 4 can be read\. Download or write"
    for reading in (
        stored_parquet([path]).labels,
        lambda: column_of([path], "label"),
    ):
        with pytest.raises(RecordError, match=complaint):
            reading()


def test_a_column_of_numbers_is_read_beside(tmp_path):
    quality = pa.array([0.5, 1.0, None, 2.0, 3.0])
    found = column_of(files(tmp_path, quality=quality), "quality")
    np.testing.assert_array_equal(found, [0.5, 1, np.nan, 2, 3] * 2)
    with pytest.raises(RecordError, match="expected numbers"):
        column_of(files(tmp_path, quality=pa.array(list("abcde"))), "quality")
    with pytest.raises(RecordError, match="Name the quality column with --quality-column"):
        column_of(files(tmp_path), "quality")


def test_a_row_without_an_image_and_one_that_cannot_be_read_are_damaged(tmp_path):
    images = pa.array([IMAGES[0], {"bytes": None, "path": "gone.jpg"}, *IMAGES[2:5]], STRUCT)
    path = write(tmp_path / "a.parquet", images, pa.array([1] * 5))
    found = stored_parquet([path])
    with pytest.raises(RecordError, match="row without an image"):
        found.read(1)
    content = bytearray(path.read_bytes())
    for at in range(4, 40):  # the first column chunk
        content[at] ^= 0x5A
    path.write_bytes(content)
    found = stored_parquet([path])
    with pytest.raises(RecordError, match="cannot be read"):
        found.read(0)
    assert found.read(4) == IMAGES[4]["bytes"]


def test_row_groups_that_no_memory_holds_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_images, "_MOST_TOGETHER", 10)
    with pytest.raises(RecordError, match="write it again with a row_group_size"):
        stored_parquet(files(tmp_path))


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no parquet" * 100])
def test_another_kind_of_file_is_named(tmp_path, content):
    (tmp_path / "x.parquet").write_bytes(content)
    remedy = r"x\.parquet cannot be read as parquet: .*[^.]\. Download or write it again$"
    with pytest.raises(RecordError, match=remedy):
        stored_parquet([tmp_path / "x.parquet"])


def test_what_the_system_refuses_is_no_matter_of_another_download(tmp_path):
    with pytest.raises(RecordError, match=r"x\.parquet does not exist\. Check the path$"):
        column_of([tmp_path / "x.parquet"], "label")


def test_a_label_column_that_is_there_twice_is_refused(tmp_path):
    twice = pa.table([pa.array([b"1"]), pa.array([0]), pa.array([1])], ["image", "label", "label"])
    pa.parquet.write_table(twice, tmp_path / "a.parquet")
    with pytest.raises(RecordError, match="has 2 columns 'label': expected one"):
        stored_parquet([tmp_path / "a.parquet"])


def test_more_rows_than_bytes_are_refused_since_no_offset_could_tell_them_apart(tmp_path):
    images, labels = pa.array([b"same"] * 5000 + [b"other"] * 5000), pa.array([0] * 10_000)
    table = pa.table({"image": images, "label": labels})
    pa.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=5000)
    with pytest.raises(RecordError, match=r"5,000 rows in \d+ bytes.*smaller row_group_size"):
        stored_parquet([tmp_path / "a.parquet"]).spans(None)
