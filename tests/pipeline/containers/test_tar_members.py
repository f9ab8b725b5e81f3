"""The files of a tar are where tarfile finds them; what is damaged is refused."""

from __future__ import annotations

import io
import random
import tarfile
from pathlib import Path

import pytest

from pipeline.containers.tar_members import files_in_tar
from pipeline.records.recordio import RecordError

LETTERS = ["a", "b/", "é", "日", " ", ".jpg", "\n", "long" * 10]
FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
OTHERS = [tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE]


def a_tar(path: Path, rng: random.Random, form: int) -> Path:
    """Files and other things, with names and times of any kind."""
    with tarfile.open(path, "w", format=form, pax_headers={"comment": "of all"}) as tar:
        for number in range(rng.randrange(30)):
            name = "".join(rng.choices(LETTERS, k=rng.randrange(1, 9)))
            member = tarfile.TarInfo(f"{number}{name}".rstrip("/"))
            member.mtime = rng.choice([0, 1.5, 2**40])
            content = rng.randbytes(rng.choice([0, 1, 511, 512, 513, 3000]))
            if rng.random() < 0.2:
                member.type, member.linkname = rng.choice(OTHERS), "0a" * rng.choice([1, 90])
            else:
                member.size = len(content)
            try:
                tar.addfile(member, io.BytesIO(content))
            except ValueError:  # ustar has no room for that name
                assert form == tarfile.USTAR_FORMAT
    return path


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("seed", range(8))
def test_files_are_where_tarfile_finds_them(tmp_path, form, seed):
    path = a_tar(tmp_path / "a.tar", random.Random(seed), form)
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        expected = [(one.name, one.offset_data, one.size) for one in tar if one.isfile()]
    found = list(files_in_tar(path))
    assert [member[:3] for member in found] == expected
    for member in found:
        content = whole[member.offset : member.offset + member.size]
        assert content.startswith(member.begin)
        assert member.begin == content[:512]


def one_file(
    path: Path,
    *,
    form: int = tarfile.GNU_FORMAT,
    size: int = 5,
    name: str = "a.jpg",
    kind: bytes = tarfile.REGTYPE,
) -> Path:
    member = tarfile.TarInfo(name)
    member.type = kind
    member.size = size
    body = member.tobuf(form) + b"image".ljust(512, b"\0")
    path.write_bytes(body + bytes(1024))
    return path


def test_the_blocks_at_the_end_may_be_missing(tmp_path):
    path = one_file(tmp_path / "a.tar")
    path.write_bytes(path.read_bytes()[:1024])
    assert [member.name for member in files_in_tar(path)] == ["a.jpg"]
    path.write_bytes(bytes(10240))
    assert list(files_in_tar(path)) == []


@pytest.mark.parametrize("hole", [512, 1024, 3 << 20])
def test_a_hole_is_not_the_end(tmp_path, hole):
    """As a download leaves one that was cut off, in the middle or up to the file's size."""
    path = one_file(tmp_path / "a.tar")
    body = path.read_bytes()[:1024]
    holes = [body + bytes(hole) + body] + [body + bytes(hole)] * (hole > 1 << 20)
    for content in holes:
        path.write_bytes(content)
        with pytest.raises(
            RecordError, match=r"bytes are left where it seems to end\. Download it"
        ):
            list(files_in_tar(path))


@pytest.mark.parametrize(
    ("form", "size"),
    [
        *((form, size) for form in FORMATS[1:] for size in (600, 1 << 33, 1 << 62)),
        (tarfile.GNU_FORMAT, (1 << 80) - 1),
    ],
)
def test_more_than_there_is_is_refused(tmp_path, form, size):
    path = one_file(tmp_path / "a.tar", form=form, size=size)
    path.write_bytes(path.read_bytes()[:-1024])
    with pytest.raises(RecordError, match=r"a\.tar cannot be read as a tar file.*Download it"):
        list(files_in_tar(path))


@pytest.mark.parametrize(("name", "kind"), [("a/", b"0"), ("a", b"V"), ("a", b"x"), ("a", b"L")])
def test_sizes_without_end_are_refused_of_what_is_passed_over_too(tmp_path, name, kind):
    path = one_file(tmp_path / "a.tar", size=(1 << 80) - 1, name=name, kind=kind)
    with pytest.raises(RecordError, match=r"a\.tar cannot be read as a tar file.*Download it"):
        list(files_in_tar(path))


def test_a_size_below_zero_is_damage(tmp_path):
    path = one_file(tmp_path / "a.tar", size=-512)
    with pytest.raises(RecordError, match="a header in it is damaged"):
        list(files_in_tar(path))


@pytest.mark.parametrize("at", [0, 100, 124, 130, 148, 150, 156])
def test_a_header_with_damage_is_refused(tmp_path, at):
    path = one_file(tmp_path / "a.tar")
    content = bytearray(path.read_bytes())
    content[at] ^= 0x43
    path.write_bytes(content)
    with pytest.raises(RecordError, match="damaged"):
        list(files_in_tar(path))


@pytest.mark.parametrize(
    "said",
    [
        b"x",
        b"7 path",
        b"999999999999 path=a\n",
        b"-1 path=a\n",
        b"12 size=1e3\n",
        b"0 path=a\n",
        b"000010000" + b"0" * 5000 + b" path=" + b"a" * 9000 + b"\n",
    ],
)
def test_damage_in_what_is_said_of_a_member_is_refused(tmp_path, said):
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, len(said)
    path = one_file(tmp_path / "a.tar")
    before = header.tobuf(tarfile.USTAR_FORMAT) + said.ljust(-(-len(said) // 512) * 512, b"\0")
    path.write_bytes(before + path.read_bytes())
    with pytest.raises(RecordError, match="damaged"):
        list(files_in_tar(path))


def test_sparse_files_and_names_without_end_are_refused(tmp_path):
    for kind, size, message in (
        (tarfile.GNUTYPE_SPARSE, 0, "sparse"),
        (tarfile.GNUTYPE_LONGNAME, 1 << 30, "too long"),
    ):
        header = tarfile.TarInfo("a")
        header.type, header.size = kind, size
        (tmp_path / "a.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
        with pytest.raises(RecordError, match=message):
            list(files_in_tar(tmp_path / "a.tar"))


def test_what_is_said_of_a_sparse_file_says_how_to_write_it_whole(tmp_path):
    said = b"22 GNU.sparse.major=1\n"
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, len(said)
    path = one_file(tmp_path / "a.tar")
    before = header.tobuf(tarfile.USTAR_FORMAT) + said.ljust(512, b"\0")
    path.write_bytes(before + path.read_bytes())
    with pytest.raises(RecordError, match=r"sparse files.*without --sparse"):
        list(files_in_tar(path))
