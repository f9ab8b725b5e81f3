"""Images in an LMDB: encoded ones, and msgpack of an image and its label as HSFace has it."""

from __future__ import annotations

import pickle
import random
from pathlib import Path

import lmdb
import pytest

from pipeline.containers.lmdb_images import stored_lmdb
from pipeline.containers.stored import NO_LABEL
from pipeline.lmdb_file import LmdbError
from pipeline.records.recordio import RecordError

JPEGS = [
    b"\xff\xd8" + random.Random(k).randbytes(length) for k, length in enumerate((9, 300, 6000))
]


def packed(*things: object) -> bytes:
    """msgpack of a list."""

    def one(thing: object) -> bytes:
        if isinstance(thing, bytes):
            kind, width = next(
                (k, w) for k, w in ((0xC4, 1), (0xC5, 2), (0xC6, 4)) if len(thing) < 256**w
            )
            return bytes([kind]) + len(thing).to_bytes(width, "big") + thing
        if isinstance(thing, float):
            return b"\xcb" + bytes(8)
        if isinstance(thing, list):
            return b"\xdc" + len(thing).to_bytes(2, "big") + b"".join(map(one, thing))
        assert isinstance(thing, int)
        return (
            bytes([thing]) if 0 <= thing < 128 else b"\xd3" + thing.to_bytes(8, "big", signed=True)
        )

    return bytes([0x90 + len(things)]) + b"".join(map(one, things))


def write(path: Path, values: dict[str, bytes]) -> Path:
    with lmdb.open(str(path), map_size=1 << 26) as opened, opened.begin(write=True) as transaction:
        for key, value in values.items():
            transaction.put(key.encode(), value)
    return path / "data.mdb"


def test_encoded_images_are_read_by_their_keys(tmp_path):
    found = stored_lmdb(write(tmp_path / "a", {f"p/{k}.jpg": jpeg for k, jpeg in enumerate(JPEGS)}))
    assert list(found.names) == ["p/0.jpg", "p/1.jpg", "p/2.jpg"]
    assert [found.read(place) for place in range(3)] == JPEGS
    assert found.labels().numbers.tolist() == [0, 0, 0]


def test_keys_that_are_paths_say_who_it_is_where_no_value_does(tmp_path):
    keys = ["all/s10/1.jpg", "all/s2/1.jpg", "all/s2/2.jpg"]
    by_key = stored_lmdb(write(tmp_path / "a", dict(zip(keys, JPEGS)))).labels()
    assert (by_key.numbers.tolist(), by_key.names) == ([0, 1, 1], ["s10", "s2"])
    values = {key: packed(jpeg, 7) for key, jpeg in zip(keys, JPEGS)}
    assert stored_lmdb(write(tmp_path / "b", values)).labels().numbers.tolist() == [7, 7, 7]
    flat = {str(k): jpeg for k, jpeg in enumerate(JPEGS)}
    assert stored_lmdb(write(tmp_path / "c", flat)).labels() is None


def test_numbers_are_in_their_own_order_and_what_is_no_image_is_left_out(tmp_path):
    """Keys of an LMDB lie as text: 0, 1, 10, 11, 2."""
    about = {"__len__": b"\x0c", "__keys__": packed(b"0"), "__classnum__": b"\x03"}
    values = {f"{k}": packed(JPEGS[k % 3], k // 4) for k in range(12)}
    found = stored_lmdb(write(tmp_path / "a", values | about))
    assert list(found.names) == [f"{k}" for k in range(12)]
    assert [found.read(place) for place in range(12)] == JPEGS * 4
    labels = found.labels()
    assert (labels.numbers.tolist(), labels.names) == ([k // 4 for k in range(12)], None)


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (packed(JPEGS[2], 300_000), 300_000),
        (packed(JPEGS[2], bytes(2048), 7), 7),
        (packed(JPEGS[2], [0.5] * 512, 7, [[1, 2], [3, 4]]), 7),
        (packed(9, JPEGS[2]), 9),
        (packed(JPEGS[2], -1), NO_LABEL),
        (packed(JPEGS[2]), NO_LABEL),
        (JPEGS[2], NO_LABEL),
    ],
)
def test_the_first_whole_number_beside_the_image_is_its_label(tmp_path, value, label):
    found = stored_lmdb(write(tmp_path / "a", {"0": value, "1": packed(JPEGS[0], 1)}))
    assert found.read(0) == JPEGS[2]
    assert found.labels().numbers.tolist() == [label, 1]


@pytest.mark.parametrize(
    "value",
    [
        packed(JPEGS[2], 1)[:500],
        packed(1, 2),
        packed([[[[[[[1]]]]]]], 1),
        b"\x92\xc1",
        b"\x92\xdf\xff\xff\xff\xff",
        b"\x92\xc6\xff\xff\xff\xff" + JPEGS[0],
        b"\x92",
    ],
)
def test_a_value_that_is_damaged_costs_its_image_alone(tmp_path, value):
    found = stored_lmdb(write(tmp_path / "a", {"0": value, "1": packed(JPEGS[1], 5)}))
    with pytest.raises(RecordError):
        found.read(0)
    assert found.read(1) == JPEGS[1]
    assert found.labels().numbers.tolist()[1] == 5


def test_pickles_are_refused_and_not_run(tmp_path):
    values = {f"{k}": pickle.dumps((JPEGS[0], k)) for k in range(3)}
    with pytest.raises(LmdbError, match="pickles, which could run anything"):
        stored_lmdb(write(tmp_path / "a", values))


def test_values_of_another_kind_are_refused(tmp_path):
    with pytest.raises(LmdbError, match=r"values that are no images, such as b'hello'"):
        stored_lmdb(write(tmp_path / "a", {"0": b"hello"}))
