"""Where LMDB's own library has put values, they are found; what is damaged ends in words."""

from __future__ import annotations

import random
from pathlib import Path

import lmdb
import pytest

from pipeline.lmdb_file import LmdbError, find_lmdb, index_lmdb

SIZES = (0, 5, 100, 1990, 2040, 4080, 7000, 9000)  # inside a page, and in one or more of their own


def write(path: Path, values: dict[bytes, bytes], **options: object) -> Path:
    with lmdb.open(str(path), map_size=1 << 28, **options) as opened:  # noqa: SIM117
        with opened.begin(write=True) as transaction:
            for key, value in values.items():
                transaction.put(key, value)
    return path / "data.mdb" if path.is_dir() else path


def some_values(count: int = 3000) -> dict[bytes, bytes]:
    drawn = random.Random(0)
    return {f"{i}".encode(): drawn.randbytes(drawn.choice(SIZES)) for i in range(count)}


def read(path: Path) -> dict[bytes, bytes]:
    found, content = index_lmdb(path), path.read_bytes()
    keys = map(found.keys.raw, range(len(found.keys)))
    places = zip(keys, found.offsets.tolist(), found.lengths.tolist())
    return {key: content[offset : offset + length] for key, offset, length in places}


def test_every_value_is_where_the_library_wrote_it(tmp_path):
    values = some_values()
    found = read(write(tmp_path / "a", values))
    assert found == values
    assert list(found) == sorted(values), "in the order of the keys"


def test_what_was_deleted_and_written_again_is_as_it_is_now(tmp_path):
    values = some_values()
    path = write(tmp_path / "a", values)
    with lmdb.open(str(path.parent), map_size=1 << 28) as opened:
        for chosen, change in ((list(values)[::7], None), (list(values)[::11], b"another" * 50)):
            with opened.begin(write=True) as transaction:
                for key in chosen:
                    transaction.delete(key) if change is None else transaction.put(key, change)
            for key in chosen:
                values.pop(key, None)
                if change is not None:
                    values[key] = change
    assert read(path) == values


def test_a_file_without_a_folder_and_one_without_values(tmp_path):
    path = write(tmp_path / "one.lmdb", {b"k": b"v"}, subdir=False)
    assert (find_lmdb(path), read(path)) == (path, {b"k": b"v"})
    assert read(write(tmp_path / "none", {})) == {}
    assert find_lmdb(tmp_path / "none") == tmp_path / "none/data.mdb"
    assert find_lmdb(tmp_path) is None
    assert find_lmdb(tmp_path / "a.zip") is None


def test_databases_inside_and_several_values_of_a_key_are_refused(tmp_path):
    for name, options in (("inside", {}), ("several", {"dupsort": True})):
        with lmdb.open(str(tmp_path / name), max_dbs=2) as opened:
            inside = opened.open_db(b"images", **options)
            with opened.begin(write=True) as transaction:
                transaction.put(b"k", b"v", db=inside)
        with pytest.raises(LmdbError, match="databases inside"):
            index_lmdb(tmp_path / name / "data.mdb")


def test_another_kind_of_file_is_none(tmp_path):
    for content in (b"", b"no LMDB", bytes(100_000), b"\x89PNG" * 5000):
        (tmp_path / "x.mdb").write_bytes(content)
        with pytest.raises(LmdbError, match=r"x\.mdb is no LMDB"):
            index_lmdb(tmp_path / "x.mdb")


@pytest.mark.parametrize("part", [0.3, 0.9, 0.999])
def test_a_file_that_is_cut_off_is_named_with_its_sizes(tmp_path, part):
    path = write(tmp_path / "a", some_values(300))
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(LmdbError, match=r"data\.mdb is cut off: it has .* expected at least"):
        index_lmdb(path)


@pytest.mark.parametrize("seed", range(40))
def test_any_damage_of_its_pages_ends_in_words_or_leaves_places_inside_the_file(tmp_path, seed):
    """The library itself ends with a signal at some of these."""
    path = write(tmp_path / "a", some_values(300))
    content, drawn = bytearray(path.read_bytes()), random.Random(seed)
    for _ in range(30):
        page = drawn.randrange(len(content) // 4096)
        content[4096 * page + drawn.randrange(48)] = drawn.randrange(256)
    path.write_bytes(content)
    try:
        found = index_lmdb(path)
    except LmdbError:
        return
    assert ((found.offsets >= 0) & (found.offsets + found.lengths <= len(content))).all()
