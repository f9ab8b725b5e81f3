"""WebDataset shards: what belongs together is found, what is missing is named."""

import errno
import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.containers import texts, webdataset
from pipeline.containers.tar_members import Member, files_in_tar
from pipeline.containers.texts import Texts
from pipeline.containers.webdataset import read_webdataset, stored_webdataset
from pipeline.passed_over import PassedOver
from pipeline.records.recordio import RecordError


def shard(path: Path, members: list[tuple[str, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, content in members:
            about = tarfile.TarInfo(name)
            about.size = len(content)
            tar.addfile(about, io.BytesIO(content))
    return path


def test_an_incomplete_sample_is_counted_and_the_others_read(tmp_path):
    members = [("0.jpg", b"x"), ("1.cls", b"1"), ("2.jpg", b"y"), ("2.cls", b"7")]
    path, passed_over = shard(tmp_path / "0.tar", members), PassedOver()
    assert [sample[:2] for sample in read_webdataset([path], passed_over)] == [(7, b"y")]
    assert passed_over.lines() == [
        f"sample without a .cls or .json: 1, first {path}, sample 0",
        f"sample without an image: 1, first {path}, sample 1",
    ]


def test_a_member_that_unpacks_to_more_than_memory_is_not_read(tmp_path, monkeypatch):
    path = shard(tmp_path / "0.tar.gz", [("0.jpg", bytes(10_000)), ("0.cls", b"1")], "w:gz")
    monkeypatch.setattr(webdataset, "MOST_BYTES", 9_999)
    with pytest.raises(RecordError, match=r"0\.jpg has 10,000 bytes"):
        list(read_webdataset([path], PassedOver()))


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_samples_are_members_of_one_name(tmp_path, mode):
    one = shard(
        tmp_path / "0.tar",
        [
            ("a/001.cls", b"12\n"),
            ("a/001.jpg", b"first"),
            ("a/001.txt", b"a caption"),
            ("b/001.seg.png", b"passed over: its extension is seg.png"),
            ("b/001.PNG", b"second"),
            ("b/001.json", b'{"label": "ann", "age": 3}'),
        ],
        mode,
    )
    two = shard(tmp_path / "1.tar", [("b/001.jpeg", b"third"), ("b/001.cls", b"ann")], mode)
    read = list(read_webdataset([one, two], PassedOver()))
    assert [sample[:2] for sample in read] == [
        (12, b"first"),
        ("ann", b"second"),
        ("ann", b"third"),
    ]
    assert read[1].place == f"{one}, sample b/001"


def test_the_key_of_the_label_can_be_named(tmp_path):
    path = shard(tmp_path / "0.tar", [("0.jpg", b"x"), ("0.json", b'{"id": 4}')])
    assert [
        sample.identity for sample in read_webdataset([path], PassedOver(), label_key="id")
    ] == [4]


@pytest.mark.parametrize(
    ("members", "complaint"),
    [
        ([("0.jpg", b"x"), ("0.png", b"y"), ("0.cls", b"1")], "two members for its image"),
        ([("0.jpg", b"x"), ("0.json", b"{")], r"its \.json is garbled"),
        ([("0.jpg", b"x"), ("0.json", b"[1]")], "has a list and the label None"),
        ([("0.jpg", b"x"), ("0.json", b'{"id": 1}')], "has 'id' and the label None"),
        ([("0.jpg", b"x"), ("0.json", b'{"label": 1.5}')], "the label 1.5 under 'label'"),
        ([("0.jpg", b"x"), ("0.json", b'{"label": true}')], "the label True"),
        ([("0.jpg", b"x"), ("0.cls", b"\xff")], r"its \.cls is not UTF-8"),
    ],
)
def test_a_sample_that_is_incomplete_is_named(tmp_path, members, complaint):
    path = shard(tmp_path / "bad.tar", members)
    with pytest.raises(RecordError, match=rf"bad\.tar, sample 0.*{complaint}"):
        list(read_webdataset([path], PassedOver()))


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_shard_that_is_cut_off_is_named(tmp_path, mode):
    image = bytes(range(256)) * 40
    path = shard(tmp_path / "cut.tar", [("0.jpg", image), ("0.cls", b"1")], mode)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    with pytest.raises(RecordError, match=r"cut\.tar cannot be read as a tar file"):
        list(read_webdataset([path], PassedOver()))


def test_a_file_of_another_kind_is_named(tmp_path):
    (tmp_path / "no.tar").write_bytes(b"no tar file" * 100)
    with pytest.raises(RecordError, match=r"no\.tar cannot be read as a tar file"):
        list(read_webdataset([tmp_path / "no.tar"], PassedOver()))


def test_links_are_no_images(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        link = tarfile.TarInfo("0.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(link)
    assert list(read_webdataset([tmp_path / "0.tar"], PassedOver())) == []


# --- Read where they lie ------------------------------------------------------------------------


def test_images_are_read_where_they_lie_with_labels_or_without(tmp_path):
    members = [
        ("p/0.jpg", b"zero"),
        ("p/0.json", b'{"label": "ann"}'),
        ("p/1.png", b"one"),
        ("p/2.cls", b"no image"),
        ("p/3.jpg", b"three"),
        ("p/3.cls", b"bob"),
        ("p/4.jpg", b"four"),
        ("p/4.json", b'{"who": 1}'),
    ]
    found = stored_webdataset([shard(tmp_path / "0.tar", members)])
    assert list(found.names) == ["p/0", "p/1", "p/3", "p/4"]
    assert [found.read(place) for place in range(4)] == [b"zero", b"one", b"three", b"four"]
    labels = found.labels()
    assert (labels.numbers.tolist(), labels.names) == ([0, -1, 1, -1], ["ann", "bob"])


def test_names_of_several_shards_begin_with_theirs(tmp_path):
    shards = [shard(tmp_path / f"{k}.tar", [("a.jpg", b"%d" % k), ("a.cls", b"5")]) for k in (0, 1)]
    found = stored_webdataset(shards)
    assert list(found.names) == ["0.tar/a", "1.tar/a"]
    assert [found.read(place) for place in range(2)] == [b"0", b"1"]
    assert found.labels().numbers.tolist() == [5, 5]


def test_shards_that_cannot_be_read_where_they_lie_are_named(tmp_path):
    path = shard(tmp_path / "0.tar.gz", [("0.jpg", b"x")], "w:gz")
    with pytest.raises(RecordError, match=r"0\.tar\.gz cannot be read as a tar file.*gunzip"):
        stored_webdataset([path])
    twice = [("0.jpg", b"x"), ("1.jpg", b"y"), ("0.png", b"z")]
    with pytest.raises(RecordError, match="sample 0: found two images of this name"):
        stored_webdataset([shard(tmp_path / "a.tar", twice)])
    path = shard(tmp_path / "b.tar", [("0.jpg", bytes(5000)), ("1.jpg", bytes(5000))])
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(RecordError, match=r"b\.tar cannot be read as a tar file"):
        stored_webdataset([path])


LONG = b'{"label": "ann", "caption": "%s"}' % (b"long" * 1000)


def test_a_shard_is_opened_once_for_all_its_long_json(tmp_path, monkeypatch):
    members = [(f"{k}.{of}", LONG) for k in range(5) for of in ("jpg", "json")]
    shards = [shard(tmp_path / f"{k}.tar", members) for k in range(2)]
    opened: list[Path] = []
    os_open = os.open

    def counted(path: Path, flags: int) -> int:
        opened.append(path)
        return os_open(path, flags)

    monkeypatch.setattr(os, "open", counted)
    found = stored_webdataset(shards)
    assert opened == [path for path in shards for _ in range(2)], "for its members, and for those"
    assert found.labels().names == ["ann"]


def test_a_disk_that_fails_within_a_long_json_is_named_with_the_sample(tmp_path, monkeypatch):
    path = shard(tmp_path / "0.tar", [("0.jpg", b"x"), ("0.json", LONG)])
    pread = os.pread

    def failing(file: int, length: int, offset: int) -> bytes:
        if length == len(LONG):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pread(file, length, offset)

    monkeypatch.setattr(os, "pread", failing)
    complaint = r"0\.tar, sample 0: 0\.json cannot be read: .*0\.tar cannot be .* the disk fails"
    with pytest.raises(RecordError, match=complaint):
        stored_webdataset([path])


def test_a_json_of_more_bytes_than_any_has_is_not_read(tmp_path, monkeypatch):
    path = shard(tmp_path / "0.tar", [("0.jpg", b"x"), ("0.json", LONG)])
    monkeypatch.setattr(webdataset, "MOST_BYTES", 999)
    with pytest.raises(
        RecordError, match=r"sample 0: 0\.json has 4,0.. bytes, expected at most 999"
    ):
        stored_webdataset([path])


def test_names_are_put_away_while_a_shard_is_still_read(tmp_path, monkeypatch):
    """One tar may have millions: as Python's texts they would take a hundred bytes each."""
    path = shard(tmp_path / "0.tar", [(f"{k:03d}.jpg", b"x") for k in range(100)])
    monkeypatch.setattr(texts, "_PIECE", 10)
    put_away: list[int] = []
    at_its_end: list[int] = []
    init = Texts.__init__

    def noted(self: Texts, ends: np.ndarray, content: np.ndarray) -> None:
        put_away.append(len(ends))
        init(self, ends, content)

    def members(path: Path) -> Iterator[Member]:
        yield from files_in_tar(path)
        at_its_end.append(sum(put_away))

    monkeypatch.setattr(Texts, "__init__", noted)
    monkeypatch.setattr(webdataset, "files_in_tar", members)
    assert len(stored_webdataset([path]).names) == 100
    assert at_its_end[0] >= 90
