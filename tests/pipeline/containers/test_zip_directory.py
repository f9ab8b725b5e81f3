"""The directory of a .zip says what zipfile reads of it; what cannot be believed is refused."""

from __future__ import annotations

import random
import struct
import zipfile
import zlib
from pathlib import Path

import pytest

from pipeline.containers import zip_directory
from pipeline.containers.zip_directory import Members, read_directory
from pipeline.records.recordio import RecordError

LETTERS = ["a", "b/", "é", "日", " ", ".jpg", "\n", '"', "__"]
NOTE = b"\x55\x54" + (5).to_bytes(2, "little") + b"12345"


def a_zip(path: Path, rng: random.Random) -> Path:
    """Members of any names, sizes and ways of packing, with notes and comments."""
    with zipfile.ZipFile(path, "w", allowZip64=True) as opened:
        for number in range(rng.randrange(60)):
            name = "".join(rng.choices(LETTERS, k=rng.randrange(1, 12))).lstrip("/")
            member = zipfile.ZipInfo(f"{number}{name}" * rng.choice([1, 1, 1, 40]))
            member.extra = NOTE * rng.randrange(3)
            member.comment = b"of it PK\1\2" * rng.randrange(3)
            member.compress_type = rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
            content = rng.randbytes(rng.randrange(40)) * rng.randrange(4)
            with opened.open(member, "w", force_zip64=rng.random() < 0.5) as stream:
                stream.write(content)
        opened.comment = b"of all" * rng.randrange(3)
    return path


def as_zipfile_says(path: Path) -> list[tuple]:
    with zipfile.ZipFile(path) as opened:
        return [
            (
                member.filename,
                member.header_offset,
                member.compress_size,
                member.file_size,
                member.CRC,
                member.compress_type,
                member.flag_bits,
            )
            for member in opened.infolist()
        ]


def rows(members: Members) -> list[tuple]:
    names, *columns = members
    return list(zip(names, *(column.tolist() for column in columns)))


@pytest.mark.parametrize("seed", range(20))
def test_it_is_as_zipfile_says(tmp_path, monkeypatch, seed):
    rng = random.Random(seed)
    monkeypatch.setattr(zip_directory, "_PIECE", rng.choice([3000, 1 << 20]))
    path = a_zip(tmp_path / "a.zip", rng)
    path.write_bytes(b"#!/bin/sh\n" * rng.randrange(3) + path.read_bytes())  # unpacks itself
    assert rows(read_directory(path, lambda name: True)) == as_zipfile_says(path)


def with_64_bits(path: Path, *, size: int = 5, offset: int = 0, cut: int = 0) -> Path:
    """A .zip of one member whose sizes and offset, and those of the directory, take 64 bits."""
    local = struct.pack("<4s5H3I2H", b"PK\3\4", 45, 0, 0, 0, 0, zlib.crc32(b"image"), 5, 5, 7, 0)
    body = local + b"a/1.jpg" + b"image"
    field = struct.pack("<2H3Q", 1, 24 - cut, size, 5, offset)[: 28 - cut]
    entry = struct.pack(
        "<4s6H3I5H2I",
        *(b"PK\1\2", 45, 45, 0, 0, 0, 0, zlib.crc32(b"image"), 0xFFFFFFFF, 0xFFFFFFFF),
        *(7, len(NOTE) + len(field), 0, 0, 0, 0, 0xFFFFFFFF),
    )
    directory = entry + b"a/1.jpg" + NOTE + field
    end = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, len(directory), len(body))
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, len(body) + len(directory), 1)
    path.write_bytes(
        body + directory + end + locator + b"PK\5\6" + bytes(4) + b"\xff" * 12 + bytes(2)
    )
    return path


def test_sizes_and_offsets_of_64_bits_are_read(tmp_path):
    path = with_64_bits(tmp_path / "a.zip")
    assert rows(read_directory(path, lambda name: True)) == as_zipfile_says(path)
    with zipfile.ZipFile(path) as opened:
        assert opened.read("a/1.jpg") == b"image", "it is a .zip"
    huge = read_directory(with_64_bits(path, size=1 << 63), lambda name: True)
    assert huge.size.tolist() == [1 << 63], "whoever wants to unpack it decides"


@pytest.mark.parametrize(
    ("hostile", "message"),
    [
        ({"offset": 42}, "begins outside"),
        ({"offset": 1 << 40}, "begins outside"),
        ({"offset": (1 << 64) - 1}, "begins outside"),
        ({"cut": 8}, "of 64 bits is cut off"),
    ],
)
def test_members_that_cannot_be_are_refused(tmp_path, hostile, message):
    with pytest.raises(RecordError, match=message):
        read_directory(with_64_bits(tmp_path / "a.zip", **hostile), lambda name: True)


@pytest.mark.parametrize("ours", range(-98, 0))
def test_an_end_that_says_anything_is_read_or_refused(tmp_path, ours):
    """Each byte of the records at the end, as 0, 255 and a few others."""
    path = with_64_bits(tmp_path / "a.zip")
    whole = path.read_bytes()
    for value in (0, 1, 127, 255):
        path.write_bytes(whole[:ours] + bytes([value]) + whole[len(whole) + ours + 1 :])
        try:
            assert len(read_directory(path, lambda name: True).names) <= 1
        except RecordError:
            continue


def test_names_of_old_pcs_and_those_in_utf8_beside_them(tmp_path):
    path = tmp_path / "a.zip"
    beside = b"\1" + zlib.crc32(b"\x81/1.jpg").to_bytes(4, "little") + "ü2/1.jpg".encode()
    field = struct.pack("<2H", 0x7075, len(beside)) + beside
    with zipfile.ZipFile(path, "w") as opened:
        for name, extra in (("x/1.jpg", b""), ("y/1.jpg", NOTE + field)):
            member = zipfile.ZipInfo(name)
            member.extra = extra
            opened.writestr(member, b"x")
    old = path.read_bytes().replace(b"x/1.jpg", b"\x81/1.jpg").replace(b"y/1.jpg", b"\x81/1.jpg")
    path.write_bytes(old)
    assert list(read_directory(path, lambda name: True).names) == ["ü/1.jpg", "ü2/1.jpg"]
