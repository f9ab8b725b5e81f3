"""Reading by position: what is there, and what is no longer there."""

from __future__ import annotations

import itertools
import os

import pytest

from pipeline.records import index, sidecar
from pipeline.records.record_file import RecordFile
from pipeline.records.recordio import RecordError, RecordWriter, pack_image
from tests.bad_disk import break_disk


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "train.rec"
    path.write_bytes(bytes(range(200)))
    return RecordFile(path)


def test_reads_are_the_bytes_at_their_place(file):
    assert file.size == 200
    assert file.read(10, 5) == bytes(range(10, 15))
    assert file.read(195, 5) == bytes(range(195, 200))
    assert file.read(200, 0) == b""


def test_short_reads_of_a_network_disk_are_taken_up(file, monkeypatch):
    whole = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, length, at: whole(fd, min(length, 7), at))
    assert file.read(3, 100) == bytes(range(3, 103))


def test_a_read_beyond_the_end_is_refused(file):
    with pytest.raises(RecordError, match="cannot be read: the file ends before 20 bytes from 190"):
        file.read(190, 20)


def test_a_read_that_the_disk_refuses_says_why(file, monkeypatch):
    def refused(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread", refused)
    with pytest.raises(RecordError, match=r"cannot be read: .*Input"):
        file.read(3, 4)


def test_a_file_that_was_cut_or_removed_is_found_out(file):
    file.check_unchanged()
    os.truncate(file.path, 150)
    with pytest.raises(RecordError, match="has shrunk to 150 bytes, it had 200"):
        file.check_unchanged()
    file.path.unlink()
    with pytest.raises(RecordError, match="is gone"):
        file.check_unchanged()


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="no announcements on this system")
def test_announcements_cover_every_byte_in_pieces_the_system_takes(file, monkeypatch):
    advised = []
    monkeypatch.setattr(
        os, "posix_fadvise", lambda fd, at, size, advice: advised.append((at, size))
    )
    file.will_need(1000, 300_000)
    assert advised[0][0] == 1000
    assert all(at + size == after for (at, size), (after, _) in itertools.pairwise(advised))
    assert sum(advised[-1]) == 301_000
    assert max(size for _, size in advised) <= 128 << 10


def test_a_rewritten_file_is_found_out_and_a_new_time_alone_is_not(file):
    os.utime(file.path, ns=(1, 1))
    file.check_unchanged()
    content = bytearray(file.path.read_bytes())
    content[100] ^= 1
    file.path.write_bytes(content)
    with pytest.raises(RecordError, match="was overwritten, with 200 bytes"):
        file.check_unchanged()


def test_a_file_whose_folder_cannot_be_reached_any_more_is_named(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "train.rec").write_bytes(b"some")
    file = RecordFile(tmp_path / "folder" / "train.rec")
    (tmp_path / "folder" / "train.rec").unlink()
    (tmp_path / "folder").rmdir()
    (tmp_path / "folder").write_bytes(b"a file now")
    with pytest.raises(RecordError, match=r"cannot be reached: .*Not a directory"):
        file.check_unchanged()


def test_the_descriptor_goes_with_the_object(file):
    descriptor = RecordFile(file.path)._descriptor  # nothing holds the object any more
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_a_set_is_indexed_where_nothing_can_be_mapped_shared_or_synced(tmp_path, monkeypatch):
    """The .rec and a sidecar too long to be held in memory, at the first opening and the second."""
    path = tmp_path / "train.rec"
    with RecordWriter(path) as writer:
        for key in range(3):
            writer.write(pack_image(b"image%d" % key, float(key), key))
    monkeypatch.setattr(sidecar, "_IN_MEMORY", 0)
    break_disk(monkeypatch, "directio", "nofsync")
    for _ in range(2):
        opened = index.open_index(path)
        assert [bytes(opened.image(k)) for k in range(3)] == [b"image0", b"image1", b"image2"]
        assert path.with_suffix(".fsidx").exists(), "or the next start would scan the file again"
