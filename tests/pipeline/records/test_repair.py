"""Repair keeps what is intact, byte for byte, and bookkeeping speaks of what is there."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.records.index import open_index
from pipeline.records.mxnet_idx import read_idx
from pipeline.records.recordio import (
    RecordError,
    RecordWriter,
    pack_image,
    read_record,
    unpack_image,
)
from pipeline.records.repair import repair
from pipeline.records.scan import scan_rec
from pipeline.records.write_set import pack_set


def records(rec: Path) -> list:
    content = memoryview(rec.read_bytes())
    _, offsets = read_idx(rec.with_suffix(".idx"))
    return [unpack_image(read_record(content, at)[0]) for at in offsets]


def images_of(folder: Path) -> list[tuple[bytes, int]]:
    index = open_index(folder)
    return [(bytes(index.image(i)), int(index.records["label"][i])) for i in range(len(index))]


@pytest.fixture
def packed(tmp_path) -> Path:
    """Identities 0, 1, 2 with 2, 1 and 3 images."""
    pack_set(tmp_path / "in", [[b"a0", b"a1"], [b"b0"], [b"c0", b"c1", b"c2"]])
    return tmp_path / "in"


def test_an_intact_set_is_repaired_into_itself(packed, tmp_path):
    assert repair(open_index(packed), tmp_path / "out")[:2] == (3, 6)
    for name in ("train.rec", "train.idx", "property"):
        assert (tmp_path / "out" / name).read_bytes() == (packed / name).read_bytes()


def test_damage_is_left_out_and_the_bookkeeping_mended(packed, tmp_path):
    rec = packed / "train.rec"
    content = bytearray(rec.read_bytes())
    _, offsets = read_idx(packed / "train.idx")
    content[offsets[3]] ^= 0xFF  # the only image of identity 1
    content[offsets[5]] ^= 0xFF  # the second of identity 2
    rec.write_bytes(content)
    assert repair(open_index(packed), tmp_path / "out")[:2] == (3, 4)
    expected = [(b"a0", 0), (b"a1", 0), (b"c0", 2), (b"c2", 2)]
    assert images_of(tmp_path / "out") == expected
    header, *rest = records(tmp_path / "out" / "train.rec")
    assert header.labels.tolist() == [5, 8]
    assert [record.key for record in rest] == list(range(1, 8))
    assert [record.labels.tolist() for record in rest[4:]] == [[1, 3], [3, 3], [3, 5]]
    summary = scan_rec(tmp_path / "out" / "train.rec").summary
    assert (summary.damaged_spans, summary.announced_images) == (0, 4)
    summary.check_damage(rec, 0)


def test_an_identity_whose_last_images_are_lost_keeps_its_number(packed, tmp_path):
    index = open_index(packed)
    lost = index.records["offset"][index.records["label"] == 2].tolist()
    assert repair(index, tmp_path / "out", without=lost)[:2] == (3, 3)
    assert records(tmp_path / "out" / "train.rec")[-1].labels.tolist() == [4, 4]
    assert (tmp_path / "out" / "property").read_text() == "3,112,112\n"


def test_a_file_without_bookkeeping_gets_it_and_label_vectors_stay(tmp_path):
    with RecordWriter(tmp_path / "train.rec") as writer:
        writer.write(pack_image(b"b", [1.0, 0.25], 9))
        writer.write(pack_image(b"a", 0.0, 4))
        writer.write(pack_image(b"B", [1.0, 0.5], 2))
    repair(open_index(tmp_path), tmp_path / "out")
    found = records(tmp_path / "out" / "train.rec")
    assert [record.labels.tolist() for record in found[1:4]] == [[0.0], [1.0, 0.25], [1.0, 0.5]]
    assert [bytes(record.image) for record in found[1:4]] == [b"a", b"b", b"B"]


def test_nothing_intact_and_a_set_that_is_there_are_refused(packed, tmp_path):
    index = open_index(packed)
    with pytest.raises(RecordError, match="no images to pack"):
        repair(index, tmp_path / "out", without=index.records["offset"].tolist())
    with pytest.raises(RecordError, match="exists: name another folder"):
        repair(index, packed)


@pytest.mark.slow
@given(
    sizes=st.lists(st.integers(1, 3), min_size=1, max_size=5),
    hits=st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), max_size=4),
)
def test_whatever_the_damage_the_repaired_file_holds_what_the_index_held(
    tmp_path_factory, sizes, hits
):
    folder = tmp_path_factory.mktemp("set")
    pack_set(
        folder, [[bytes([65 + k]) * (5 + 7 * n) for n in range(m)] for k, m in enumerate(sizes)]
    )
    rec = folder / "train.rec"
    content = bytearray(rec.read_bytes())
    for place, bits in hits:
        content[int(place * (len(content) - 1))] ^= bits
    rec.write_bytes(content)
    (folder / "train.idx").unlink()
    try:
        kept = images_of(folder)
        identities, images, _ = repair(open_index(folder), folder / "out")
    except RecordError:
        return  # a label or the only image was hit: refused, not repaired
    assert images == len(kept)
    assert images_of(folder / "out") == sorted(kept, key=lambda image: image[1])
    found = open_index(folder / "out")
    assert found.summary.damaged_spans == 0
    assert found.summary.identity_records == identities
    ends = np.cumsum(np.bincount([label for _, label in kept], minlength=identities)) + 1
    bookkeeping = records(folder / "out" / "train.rec")[images + 1 :]
    assert [record.labels[1] for record in bookkeeping] == ends.tolist()
