"""The sidecar is trusted where the .rec is as it was scanned, and built again where it is not."""

import json
import os
import shutil
import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from pipeline.records.index import open_index
from pipeline.records.record_file import fingerprint
from pipeline.records.recordio import RecordWriter, pack_image
from pipeline.records.scan import scan_rec
from pipeline.records.sidecar import write_sidecar

SECOND = 10**9
DAY = 86_400 * SECOND
RECORD = 532  # bytes: the frame, the image header and the image


def write(rec: Path, labels: Iterable[int]) -> None:
    """Records of RECORD bytes each."""
    with RecordWriter(rec) as writer:
        for key, label in enumerate(labels):
            writer.write(pack_image(bytes(500), float(label), key))


def set_time(path: Path, ns: int) -> None:
    os.utime(path, ns=(ns, ns))


@pytest.fixture
def indexed(tmp_path, monkeypatch):
    """A .rec of 1 MB with its sidecar, and the list that grows with every scan from now on.

    The fingerprint's blocks leave gaps of 12 KB in it.
    """
    rec = tmp_path / "train.rec"
    write(rec, range(2000))
    open_index(rec)
    scans = []
    monkeypatch.setattr(
        "pipeline.records.index.scan_rec", lambda *a: scans.append(a) or scan_rec(*a)
    )
    return rec, scans


def relabel(rec: Path, record: int) -> None:
    """Give a record the label 7777, in its place."""
    content = bytearray(rec.read_bytes())
    content[record * RECORD + 12 : record * RECORD + 16] = struct.pack("<f", 7777)
    rec.write_bytes(content)


def test_a_copy_with_its_times_needs_no_scan(indexed):
    rec, scans = indexed
    folder = rec.parent / "copy"
    folder.mkdir()
    for suffix in (".rec", ".fsidx"):
        shutil.copy2(rec.with_suffix(suffix), folder)
    assert len(open_index(folder)) == 2000
    assert not scans


@pytest.mark.parametrize("age", [-DAY, 0, DAY])
def test_the_age_of_the_sidecar_says_nothing(indexed, age):
    """It may have been copied along before the .rec or after it."""
    rec, scans = indexed
    set_time(rec.with_suffix(".fsidx"), rec.stat().st_mtime_ns + age)
    open_index(rec)
    assert not scans


@pytest.mark.parametrize("later", [-DAY, DAY])
def test_a_copy_without_its_times_is_scanned_once(indexed, later):
    """Copied by plain cp, or downloaded by what sets a time of its own."""
    rec, scans = indexed
    folder = rec.parent / "copy"
    folder.mkdir()
    for suffix in (".rec", ".fsidx"):
        shutil.copyfile(rec.with_suffix(suffix), folder / f"train{suffix}")
    set_time(folder / "train.rec", rec.stat().st_mtime_ns + later)
    open_index(folder)
    open_index(folder)
    assert len(scans) == 1


def test_times_cut_to_whole_seconds_are_the_same_times(indexed):
    rec, scans = indexed
    set_time(rec, DAY + SECOND // 2)
    open_index(rec)
    set_time(rec, DAY)
    open_index(rec)
    assert len(scans) == 1
    set_time(rec, DAY + SECOND // 4)
    open_index(rec)
    assert len(scans) == 2


@pytest.mark.parametrize("later", [-DAY, DAY])
def test_a_change_that_the_fingerprint_misses_is_known_by_its_time(indexed, later):
    """Labels corrected in place elsewhere, brought here with the source's time (rsync -t)."""
    rec, scans = indexed
    before, digest = rec.stat(), fingerprint(rec)
    relabel(rec, 16)
    set_time(rec, before.st_mtime_ns + later)
    assert (rec.stat().st_size, fingerprint(rec)) == (before.st_size, digest)
    assert open_index(rec).labels(np.array([16])) == 7777
    assert len(scans) == 1


def test_other_content_of_the_same_size_and_time_is_known_by_its_fingerprint(indexed):
    rec, scans = indexed
    before = rec.stat()
    write(rec, [k // 2 for k in range(2000)])
    set_time(rec, before.st_mtime_ns)
    assert rec.stat().st_size == before.st_size
    assert open_index(rec).summary.num_classes == 1000
    assert len(scans) == 1


def test_another_size_at_the_same_time_is_known(indexed):
    rec, scans = indexed
    before = rec.stat()
    rec.write_bytes(rec.read_bytes()[: RECORD * 1999])
    set_time(rec, before.st_mtime_ns)
    assert len(open_index(rec)) == 1999
    assert len(scans) == 1


@pytest.mark.parametrize("missing", ["size", "mtime_ns"])
def test_a_sidecar_from_before_times_were_noted_is_built_again(indexed, missing):
    rec, scans = indexed
    sidecar = rec.with_suffix(".fsidx")
    content = sidecar.read_bytes()
    about = json.loads(content[:4096])
    del about[missing]
    sidecar.write_bytes(json.dumps(about).encode().ljust(4096) + content[4096:])
    assert len(open_index(rec)) == 2000
    assert missing in json.loads(sidecar.read_bytes()[:4096])
    assert len(scans) == 1


def grow(rec: Path) -> None:
    rec.write_bytes(rec.read_bytes() + rec.read_bytes()[:RECORD])


@pytest.mark.parametrize("change", [grow, lambda rec: relabel(rec, 16)])
def test_a_file_that_changed_during_its_scan_is_scanned_again(indexed, change):
    rec, scans = indexed
    set_time(rec, DAY)
    seen, found = rec.stat(), scan_rec(rec)
    change(rec)
    write_sidecar(rec, found, rec.parent, seen=seen)
    open_index(rec)
    assert len(scans) == 1


@pytest.mark.parametrize("place", [4096 + 7 * 24 + 16, -1, 4096])
def test_a_sidecar_whose_records_were_changed_is_built_again(indexed, place):
    """A label, the last byte, the first offset."""
    rec, scans = indexed
    sidecar = rec.with_suffix(".fsidx")
    content = bytearray(sidecar.read_bytes())
    content[place] ^= 1
    sidecar.write_bytes(content)
    assert open_index(rec).records["label"].tolist() == list(range(2000))
    assert len(scans) == 1
    open_index(rec)
    assert len(scans) == 1


def test_a_small_sidecar_that_is_cut_off_later_does_no_harm(indexed):
    """It is in memory; reading on in a map of it would end the process."""
    rec, _ = indexed
    index = open_index(rec)
    os.truncate(rec.with_suffix(".fsidx"), 4096)
    assert index.labels(np.arange(2000)).tolist() == list(range(2000))
