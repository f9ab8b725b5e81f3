"""Parquet files as Hugging Face's datasets write them, and as they should not be."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.passed_over import PassedOver
from pipeline.records.recordio import RecordError
from tools.sources.parquet import read_parquet

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
IMAGES = [{"bytes": f"image {k}".encode(), "path": f"{k}.jpg"} for k in range(5)]


def write(path: Path, images: pa.Array, labels: pa.Array, *, metadata=None, **columns) -> Path:
    table = pa.table({"image": images, "label": labels, **columns})
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=2)
    return path


def test_struct_columns_of_several_files_are_read_in_order(tmp_path):
    files = [
        write(tmp_path / f"{k}.parquet", pa.array(IMAGES, STRUCT), pa.array([k] * 5))
        for k in range(2)
    ]
    read = list(read_parquet(files, PassedOver()))
    assert [sample.image for sample in read] == [image["bytes"] for image in IMAGES] * 2
    assert [sample.identity for sample in read] == [0] * 5 + [1] * 5
    assert read[7].place == f"{files[1]}, row 2"


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
@pytest.mark.parametrize(
    "labels",
    [pa.array(["x", "y"]), pa.array(["x", "y"]).dictionary_encode(), pa.array([7, 2**40])],
    ids=["text", "dictionary", "integers"],
)
def test_plain_binary_and_labels_of_every_type(tmp_path, kind, labels):
    path = write(tmp_path / "a.parquet", pa.array([b"1", b"2"], kind), labels)
    read = list(read_parquet([path], PassedOver()))
    assert [sample.image for sample in read] == [b"1", b"2"]
    assert [sample.identity for sample in read] == labels.to_pylist()


def test_the_names_of_a_class_label_become_the_identities(tmp_path):
    feature = {"label": {"names": ["ann", "bob"], "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": feature}})}
    images = pa.array(IMAGES[:2], STRUCT)
    path = write(tmp_path / "a.parquet", images, pa.array([1, 0]), metadata=metadata)
    assert [sample.identity for sample in read_parquet([path], PassedOver())] == ["bob", "ann"]
    path = write(tmp_path / "b.parquet", images, pa.array([1, 2]), metadata=metadata)
    with pytest.raises(RecordError, match=r"b\.parquet, row 1: label 2, but .* 2 classes"):
        list(read_parquet([path], PassedOver()))


@pytest.mark.parametrize("metadata", [{"huggingface": "nonsense"}, {"huggingface": "[1]"}])
def test_garbled_metadata_is_passed_over(tmp_path, metadata):
    path = write(tmp_path / "a.parquet", pa.array([b"x"]), pa.array([3]), metadata=metadata)
    assert [sample.identity for sample in read_parquet([path], PassedOver())] == [3]


def test_columns_can_be_named(tmp_path):
    other = {"face": pa.array([b"face"]), "who": pa.array(["ann"])}
    path = write(tmp_path / "a.parquet", pa.array([b"x"]), pa.array([3]), **other)
    read = read_parquet([path], PassedOver(), image_column="face", label_column="who")
    assert [sample[:2] for sample in read] == [("ann", b"face")]
    with pytest.raises(RecordError, match=r"2 can hold images, expected one: .*--image-column"):
        list(read_parquet([path], PassedOver()))


@pytest.mark.parametrize(
    ("images", "labels", "complaint"),
    [
        (pa.array([b"x"]), pa.array([0.5]), "holds double, expected integers or text"),
        (pa.array(["a.jpg"]), pa.array([0]), "0 can hold images"),
    ],
)
def test_a_row_or_column_that_will_not_do_is_named(tmp_path, images, labels, complaint):
    path = write(tmp_path / "bad.parquet", images, labels)
    with pytest.raises(RecordError, match=rf"bad\.parquet.*{complaint}"):
        list(read_parquet([path], PassedOver()))


@pytest.mark.parametrize(
    ("images", "labels", "reason"),
    [
        (pa.array([b"x", None]), pa.array([0, 1]), "row without an image"),
        (
            pa.array([{"bytes": b"x", "path": ""}, {"bytes": None, "path": "a.jpg"}], STRUCT),
            pa.array([0, 1]),
            "must embed its images first",
        ),
        (pa.array([b"x", b"y"]), pa.array([0, None]), "row without a label"),
    ],
)
def test_a_row_without_an_image_or_a_label_is_counted_and_the_others_read(
    tmp_path, images, labels, reason
):
    path, passed_over = write(tmp_path / "a.parquet", images, labels), PassedOver()
    assert [sample[:2] for sample in read_parquet([path], passed_over)] == [(0, b"x")]
    (line,) = passed_over.lines()
    assert reason in line
    assert line.endswith("row 1")


def test_a_missing_column_and_another_kind_of_file_are_named(tmp_path):
    path = write(tmp_path / "a.parquet", pa.array([b"x"]), pa.array([3]))
    with pytest.raises(RecordError, match=r"no column 'who': found image, label.*--label-column"):
        list(read_parquet([path], PassedOver(), label_column="who"))
    with pytest.raises(RecordError, match="image column 'label' holds int64"):
        list(read_parquet([path], PassedOver(), image_column="label"))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(RecordError, match="cannot be read as parquet"):
        list(read_parquet([path], PassedOver()))
