"""RecordIO framing: what is written is read back, and damage is named with its offset."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.records.recordio import (
    FIRST,
    LAST,
    MAGIC,
    MIDDLE,
    WHOLE,
    RecordError,
    RecordWriter,
    pack_image,
    read_record,
    unpack_image,
)
from pipeline.records.scan import scan

MAGIC_BYTES = struct.pack("<I", MAGIC)
# Pieces that put the magic word at aligned and unaligned places, at the ends and twice in a row.
payloads = st.lists(
    st.one_of(st.binary(max_size=9), st.just(MAGIC_BYTES), st.just(b"\0" * 4)), max_size=8
).map(b"".join)


@given(records=st.lists(payloads, min_size=1, max_size=6))
def test_whatever_is_written_is_read_back(tmp_path_factory, records):
    path = tmp_path_factory.mktemp("rec") / "x.rec"
    with RecordWriter(path) as writer:
        offsets = [writer.write(record) for record in records]
    buffer = path.read_bytes()
    following = [*offsets[1:], len(buffer)]
    for record, offset, after in zip(records, offsets, following):
        payload, end = read_record(memoryview(buffer), offset)
        assert (bytes(payload), end) == (record, after)


@given(records=st.lists(payloads, min_size=1, max_size=6))
def test_scan_finds_every_part_and_nothing_else(tmp_path_factory, records):
    path = tmp_path_factory.mktemp("rec") / "x.rec"
    with RecordWriter(path) as writer:
        offsets = [writer.write(record) for record in records]
    found = [parts for _, parts in scan(path)]
    starts = np.concatenate([p.offset[(p.flag == WHOLE) | (p.flag == FIRST)] for p in found])
    assert starts.tolist() == offsets


@pytest.mark.parametrize("block", [4, 8, 12, 40, 256])
@pytest.mark.parametrize("blocks", [1, 2, 5])
def test_scan_does_not_care_where_its_blocks_and_chunks_end(tmp_path, monkeypatch, block, blocks):
    path = tmp_path / "x.rec"
    with RecordWriter(path) as writer:
        for k in range(20):
            writer.write(pack_image(MAGIC_BYTES * (k % 3) + bytes(k), [float(k)] * (k % 4), k))
    [(_, expected)] = scan(path)
    monkeypatch.setattr("pipeline.records.scan._BLOCK", block)
    monkeypatch.setattr("pipeline.records.scan._CHUNK", block * blocks)
    chunks = list(scan(path))
    assert chunks[-1][0] == path.stat().st_size
    for field, values in expected._asdict().items():
        found = np.concatenate([getattr(parts, field) for _, parts in chunks])
        np.testing.assert_array_equal(found, values)
        assert found.dtype == values.dtype


def test_a_payload_is_split_at_the_magic_word_as_dmlc_splits_it(tmp_path):
    path = tmp_path / "x.rec"
    with RecordWriter(path) as writer:
        writer.write(b"abcd" + MAGIC_BYTES + b"efgh" + MAGIC_BYTES + b"ij")
    words = [MAGIC, FIRST << 29 | 4, *struct.unpack("<I", b"abcd")]
    words += [MAGIC, MIDDLE << 29 | 4, *struct.unpack("<I", b"efgh")]
    words += [MAGIC, LAST << 29 | 2, *struct.unpack("<I", b"ij\0\0")]
    assert path.read_bytes() == struct.pack(f"<{len(words)}I", *words)


def test_the_magic_word_off_the_grid_is_left_alone(tmp_path):
    with RecordWriter(tmp_path / "x.rec") as writer:
        writer.write(b"a" + MAGIC_BYTES + b"bcd")
    assert (tmp_path / "x.rec").read_bytes()[4:8] == struct.pack("<I", WHOLE << 29 | 8)


@pytest.mark.parametrize("labels", [7.0, [7.0], [7.0, 3.0, 0.5]])
def test_image_header_round_trip(labels):
    record = unpack_image(pack_image(b"jpeg", labels, 42))
    assert record.labels.tolist() == (labels if isinstance(labels, list) else [labels])
    assert (record.key, bytes(record.image), record.vector) == (42, b"jpeg", labels != 7.0)


@pytest.mark.parametrize(
    ("buffer", "complaint"),
    [
        (b"\x0a\x23", "ends inside"),
        (b"\0" * 16, "no record starts at offset 0"),
        (struct.pack("<II", MAGIC, 99) + b"abcd", "runs past the end"),
        (struct.pack("<II", MAGIC, LAST << 29 | 4) + b"abcd", "flag 3 stands alone"),
        (struct.pack("<II", MAGIC, FIRST << 29 | 4) + b"abcd", "ends inside"),
        (struct.pack("<II", MAGIC, 5 << 29 | 4) + b"abcd", "flag 5"),
    ],
)
def test_what_is_not_a_record_is_named(buffer, complaint):
    with pytest.raises(RecordError, match=complaint):
        read_record(memoryview(buffer), 0)


@pytest.mark.parametrize("payload", [b"short", struct.pack("<IfQQ", 1000, 0, 0, 0)])
def test_a_payload_shorter_than_its_header_is_refused(payload):
    with pytest.raises(RecordError, match=r"too short|announces 1000 labels"):
        unpack_image(payload)
