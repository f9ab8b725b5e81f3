"""The index: real files are understood, the sidecar is trusted only when it should be."""

import json
import os
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.records.index import open_index
from pipeline.records.mxnet_idx import check_idx, read_idx, write_idx
from pipeline.records.recordio import MAGIC, RecordError, RecordWriter, pack_image
from pipeline.records.scan import map_file, scan_rec
from pipeline.records.sidecar import digest, sidecar_folders, write_sidecar

ROOT = Path(__file__).parents[3]
LFW = ROOT.parent / "shared/data/faces_lfw_dev"
needs_lfw = pytest.mark.skipif(not LFW.exists(), reason="faces_lfw_dev is not on this machine")
MAGIC_BYTES = struct.pack("<I", MAGIC)


def write(path: Path, records: list[bytes]) -> list[int]:
    with RecordWriter(path) as writer:
        return [writer.write(record) for record in records]


@pytest.fixture
def small(tmp_path):
    """A header record, five images of three identities, three identity records."""
    images = [(f"image{k}".encode() * (k + 1), label) for k, label in enumerate([0, 0, 1, 2, 2])]
    records = [pack_image(b"", [6.0, 9.0], 0)]
    records += [pack_image(image, float(label), k + 1) for k, (image, label) in enumerate(images)]
    records += [pack_image(b"", [1.0, 3.0], 6), pack_image(b"", [3.0, 4.0], 7)]
    records += [pack_image(b"", [4.0, 6.0], 8)]
    rec = tmp_path / "train.rec"
    offsets = write(rec, records)
    return rec, offsets, images


@needs_lfw
def test_a_file_that_mxnet_wrote_is_understood_record_by_record(tmp_path):
    found = scan_rec(LFW / "train.rec")
    assert (found.summary.images, found.summary.identities) == (2951, 370)
    assert (found.summary.header_records, found.summary.identity_records) == (1, 370)
    assert found.summary.announced_images == 2951
    assert found.summary.damaged_spans == 0
    write_idx(tmp_path / "train.idx", found.keys, found.offsets)
    assert (tmp_path / "train.idx").read_bytes() == (LFW / "train.idx").read_bytes()


@needs_lfw
def test_images_of_a_real_file_are_jpegs_of_rising_identities():
    index = open_index(LFW)
    assert all(bytes(index.image(i)[:2]) == b"\xff\xd8" for i in range(0, len(index), 97))
    assert all(bytes(index.image(i)[-2:]) == b"\xff\xd9" for i in range(0, len(index), 97))
    labels = index.labels(np.arange(len(index)))
    assert set(np.diff(labels)) == {0, 1}


def test_only_images_are_indexed(small):
    rec, offsets, images = small
    index = open_index(rec)
    assert [bytes(index.image(i)) for i in range(len(index))] == [image for image, _ in images]
    assert index.labels(np.arange(5)).tolist() == [label for _, label in images]
    assert index.records["offset"].tolist() == offsets[1:6]


def test_label_vectors_give_their_first_number_as_identity(tmp_path):
    write(tmp_path / "train.rec", [pack_image(b"a", [5.0, 77.0], 0), pack_image(b"b", [6.0], 1)])
    index = open_index(tmp_path)
    assert index.labels(np.arange(2)).tolist() == [5, 6]
    assert [bytes(index.image(i)) for i in range(2)] == [b"a", b"b"]


def test_images_that_hold_the_magic_word_are_rejoined_in_their_place(tmp_path):
    tricky = [b"x" + MAGIC_BYTES, b"abcd" + MAGIC_BYTES + b"efgh" + MAGIC_BYTES, MAGIC_BYTES]
    images = [b"plain", *tricky, b"plain too"]
    # The last one also has the magic word's bits as its id, inside the header.
    records = [pack_image(image, float(k), k) for k, image in enumerate(images)]
    records.append(pack_image(b"last", 9.0, MAGIC))
    write(tmp_path / "train.rec", records)
    index = open_index(tmp_path)
    assert [bytes(index.image(i)) for i in range(len(index))] == [*images, b"last"]
    assert index.labels(np.arange(6)).tolist() == [0, 1, 2, 3, 4, 9]
    assert index.summary.split_records == 3
    assert index.summary.damaged_spans == 0


@pytest.mark.parametrize("label", [-1.0, 0.5, float("nan"), float("inf"), 2.0**24])
def test_labels_that_name_no_single_identity_are_refused_with_their_offset(tmp_path, label):
    offsets = write(tmp_path / "train.rec", [pack_image(b"a", 1.0, 0), pack_image(b"b", label, 1)])
    with pytest.raises(RecordError, match=f"offset {offsets[1]} has the label"):
        open_index(tmp_path)


def test_large_labels_come_from_the_sidecar(tmp_path):
    """A sidecar written with int64 labels is used, so float32's collapse does no harm."""
    write(tmp_path / "train.rec", [pack_image(b"a", 1.0, 0), pack_image(b"b", 2.0, 1)])
    found = scan_rec(tmp_path / "train.rec")
    found.images["label"][1] = 2**24 + 1
    write_sidecar(tmp_path / "train.rec", found, tmp_path)
    assert open_index(tmp_path).labels(np.arange(2)).tolist() == [1, 2**24 + 1]


def test_the_sidecar_spares_a_second_scan_until_the_file_changes(small, monkeypatch):
    rec, _, _ = small
    scans = []
    monkeypatch.setattr(
        "pipeline.records.index.scan_rec", lambda *a: scans.append(a) or scan_rec(*a)
    )
    open_index(rec)
    open_index(rec)
    assert len(scans) == 1
    sidecar = rec.with_suffix(".fsidx")
    changed = bytearray(rec.read_bytes())
    changed[80] ^= 1  # inside an image: the same size, other content
    rec.write_bytes(changed)
    future = sidecar.stat().st_mtime_ns + 10**9
    os.utime(sidecar, ns=(future, future))
    open_index(rec)
    assert len(scans) == 2, "other content under a younger sidecar"
    os.utime(rec, ns=(future * 2, future * 2))
    open_index(rec)
    assert len(scans) == 3, "a younger file"
    os.utime(rec, ns=(0, 0))
    sidecar.write_bytes(sidecar.read_bytes()[:-1])
    open_index(rec)
    assert len(scans) == 4, "a truncated sidecar"
    with rec.open("ab") as file:
        file.write(bytes(4))
    os.utime(rec, ns=(0, 0))
    open_index(rec)
    assert len(scans) == 5, "another size under a younger sidecar"
    open_index(rec)
    assert len(scans) == 5


def test_a_sidecar_of_40_million_records_is_opened_without_being_read(small):
    """In a process of its own; the sidecar is sparse, so it takes no room on the disk."""
    rec, _, _ = small
    open_index(rec)
    sidecar = rec.with_suffix(".fsidx")
    about = json.loads(sidecar.read_bytes()[:4096])
    about["summary"]["images"] = 40_000_000
    with sidecar.open("r+b") as file:
        file.truncate(4096)
        file.truncate(4096 + 40_000_000 * 24)
        about["digest"] = digest(about, np.memmap(sidecar, np.uint8, mode="r", offset=4096))
        file.write(json.dumps(about).encode().ljust(4096))
    script = """
import resource, sys
from pipeline.records.index import open_index
def taken():
    resident = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
    return resident, int(open("/proc/self/io").readline().split()[1])
before = taken()
index = open_index(sys.argv[1])
touched = index.records["offset"][::400_000].sum()
print(len(index), touched, *(now - then for now, then in zip(taken(), before)))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(rec)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    images, _, grown, read = map(int, done.stdout.split())
    assert images == 40_000_000
    assert grown < 100e6
    assert read < 10e6


def test_a_read_only_folder_gets_its_sidecar_in_the_cache(small, monkeypatch, tmp_path):
    rec, _, _ = small
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rec.parent.chmod(0o555)
    try:
        open_index(rec)
    finally:
        rec.parent.chmod(0o755)
    beside, cache, _ = sidecar_folders(rec)
    assert not (beside / "train.fsidx").exists()
    assert (cache / "train.fsidx").exists()


def test_a_missing_or_empty_file_is_named(tmp_path):
    with pytest.raises(RecordError, match=r"nothing\.rec does not exist"):
        open_index(tmp_path / "nothing.rec")
    (tmp_path / "empty.rec").touch()
    with pytest.raises(RecordError, match=r"empty\.rec is empty"):
        open_index(tmp_path / "empty.rec")


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "train.rec").write_bytes(b"PK\x03\x04" + bytes(1000))
    with pytest.raises(RecordError, match="not a RecordIO file: it starts with 504b0304"):
        open_index(tmp_path)


def test_a_file_cut_off_mid_record_is_refused_until_the_loss_is_accepted(small):
    rec, offsets, _ = small
    rec.write_bytes(rec.read_bytes()[: offsets[5] + 37])
    index = open_index(rec)
    assert len(index) == 4
    assert index.summary.truncated
    complaint = rf"does not end where a record ends: 4 .*offset {offsets[5]}"
    with pytest.raises(RecordError, match=complaint):
        index.summary.check_damage(rec, 0.5)
    index.summary.check_damage(rec, 1.0)


def test_a_file_cut_off_between_records_is_missed_by_its_header_record(small):
    rec, offsets, _ = small
    rec.write_bytes(rec.read_bytes()[: offsets[4]])
    index = open_index(rec)
    with pytest.raises(RecordError, match="3 intact images, 2 lost"):
        index.summary.check_damage(rec, 0.001)


@pytest.mark.parametrize("extra", [1, 4, 6, 4096])
def test_a_file_that_ends_in_no_record_is_truncated(small, extra):
    rec, _, _ = small
    tail = struct.pack("<II", MAGIC, 500)[:extra] if extra < 8 else bytes(extra)
    rec.write_bytes(rec.read_bytes() + tail)
    index = open_index(rec)
    assert len(index) == 5
    with pytest.raises(RecordError, match="does not end where a record ends"):
        index.summary.check_damage(rec, 0.5)


def test_a_hole_counts_as_the_images_it_swallowed(tmp_path):
    records = [pack_image(b"image" * 10, float(k), k) for k in range(40)]
    offsets = write(tmp_path / "train.rec", records)
    content = bytearray((tmp_path / "train.rec").read_bytes())
    content[offsets[5] : offsets[25]] = bytes(offsets[25] - offsets[5])
    (tmp_path / "train.rec").write_bytes(content)
    summary = open_index(tmp_path).summary
    assert summary.damaged_spans == 1
    with pytest.raises(RecordError, match="20 intact images, 20 lost"):
        summary.check_damage(tmp_path, 0.3)


@pytest.mark.parametrize(
    ("images", "lost"), [(70, 18), (21, 29), (5_800_000, 1), (0, 3), (3, 997), (699, 1)]
)
def test_the_fraction_that_is_suggested_is_accepted(small, images, lost):
    """And little more is, so that further damage is seen. 0.58 * 50 is less than 29, in floats."""
    summary = replace(
        open_index(small[0]).summary,
        **{"images": images, "damaged_spans": lost, "announced_images": None},
    )
    with pytest.raises(RecordError, match=f"{lost} lost") as refused:
        summary.check_damage(small[0], 0)
    fraction = float(str(refused.value).partition("max_bad_fraction=")[2])
    summary.check_damage(small[0], fraction)
    assert fraction < lost / (images + lost) + 0.001


def test_a_broken_split_record_costs_no_other(tmp_path):
    """Ids beyond int64, a gap between parts, parts alone, a payload too short for a header."""
    tricky = pack_image(b"abcd" + MAGIC_BYTES + b"efgh", 1.0, 2**64 - 1)
    offsets = write(tmp_path / "train.rec", [pack_image(b"plain", 0.0, 0), tricky, tricky])
    content = bytearray((tmp_path / "train.rec").read_bytes())
    content[offsets[2] + 4] -= 4  # the first part of the second one claims to be shorter
    lone = [struct.pack("<II", MAGIC, flag << 29) for flag in (1, 3, 2, 2, 3, 1, 1)]
    last = content[: offsets[1]]
    (tmp_path / "train.rec").write_bytes(content + b"".join(lone) + last)
    index = open_index(tmp_path)
    expected = [b"plain", b"abcd" + MAGIC_BYTES + b"efgh", b"plain"]
    assert [bytes(index.image(i)) for i in range(len(index))] == expected
    assert index.summary.damaged_spans >= 4


def test_damage_is_judged_as_damage_although_the_idx_knows_the_lost_records(small):
    rec, offsets, _ = small
    write_idx(rec.with_suffix(".idx"), np.arange(9), np.array(offsets))
    content = bytearray(rec.read_bytes())
    content[offsets[2]] ^= 0xFF
    rec.write_bytes(content)
    index = open_index(rec)
    assert len(index) == 4
    index.summary.check_damage(rec, 0.5)


def test_a_download_cut_off_between_records_is_known_by_its_idx(tmp_path):
    offsets = write(tmp_path / "train.rec", [pack_image(b"a", 1.0, k) for k in range(4)])
    write_idx(tmp_path / "train.idx", np.arange(4), np.array(offsets))
    content = (tmp_path / "train.rec").read_bytes()
    (tmp_path / "train.rec").write_bytes(content[: offsets[2]])
    with pytest.raises(RecordError, match="it is cut off, download it again"):
        open_index(tmp_path)


@pytest.mark.parametrize("preamble", [b"{}", b'{"summary": "x"}', b"[]", b"\xff", b""])
def test_a_garbled_sidecar_is_built_again(small, preamble):
    rec, _, _ = small
    open_index(rec)
    rec.with_suffix(".fsidx").write_bytes(preamble.ljust(5000))
    assert len(open_index(rec)) == 5


def test_a_sidecar_that_cannot_be_written_is_done_without(small, monkeypatch, caplog):
    rec, _, _ = small
    monkeypatch.setattr("pipeline.records.index.output_folder", lambda rec: rec.parent / "nowhere")
    assert len(open_index(rec)) == 5
    assert "will be scanned again" in caplog.text


def test_damage_costs_only_what_it_touches(small):
    rec, offsets, images = small
    content = bytearray(rec.read_bytes())
    content[offsets[2] : offsets[2] + 4] = b"\0\0\0\0"  # the second image's magic word
    rec.write_bytes(content)
    index = open_index(rec)
    kept = [image for k, (image, _) in enumerate(images) if k != 1]
    assert [bytes(index.image(i)) for i in range(len(index))] == kept
    assert [span[:2] for span in index.summary.damaged] == [(offsets[2], offsets[3] - offsets[2])]
    index.summary.check_damage(rec, 0.5)
    with pytest.raises(RecordError, match="is damaged: 4 intact images, 1 lost"):
        index.summary.check_damage(rec, 0.001)


def test_an_image_record_without_an_image_is_damage_not_a_sample(tmp_path):
    write(tmp_path / "train.rec", [pack_image(b"a", 1.0, 0), pack_image(b"", 1.0, 1)])
    index = open_index(tmp_path)
    assert len(index) == 1
    assert index.summary.damaged[0][2] == "a record without an image"


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ("0\t0\n1\t99999\n", "lists a record at offset 99999, but train.rec ends at"),
        ("0\t0\n1\t99999999999999999999\n", "line 2: found"),
        ("0\t0\n", "of its 5 images it leaves out 5"),
        ("0\t0\n", "leaves out 5, the first at offset .*list them as `record"),
        ("0\t0\n0\t40\n", "line 2: key 0 appears twice, on line 1 too"),
        ("5\t0\n1\t40\n5\t88\n", "line 3: key 5 appears twice, on line 1 too"),
        ("0\t0\nnonsense\n", "line 2: found 'nonsense'"),
    ],
)
def test_an_idx_that_cannot_be_right_is_refused_with_the_remedy(small, lines, complaint):
    rec, _, _ = small
    rec.with_suffix(".idx").write_text(lines)
    with pytest.raises(RecordError, match=rf"({complaint})") as refused:
        open_index(rec)
    assert "tools/rec2idx.py" in str(refused.value)


def test_an_idx_that_lists_a_place_between_records_is_refused(small):
    rec, offsets, _ = small
    write_idx(rec.with_suffix(".idx"), np.arange(10), np.array([*offsets, offsets[-1] + 4]))
    with pytest.raises(RecordError, match=f"no record starts at offset {offsets[-1] + 4}"):
        open_index(rec)


def test_an_idx_of_all_records_or_of_images_only_agrees(small):
    rec, offsets, _ = small
    index = open_index(rec)
    idx = rec.with_suffix(".idx")
    for chosen in (range(9), range(1, 6)):
        write_idx(idx, np.array(chosen), np.array(offsets)[list(chosen)])
        check_idx(idx, index.path, images=index.records["offset"], content=map_file(rec))
        keys, read = read_idx(idx)
        assert (keys.tolist(), read.tolist()) == (list(chosen), [offsets[k] for k in chosen])


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_the_idx_of_a_shuffled_list_agrees_as_im2rec_writes_it(small, ending):
    rec, offsets, _ = small
    keys = [3, 0, 8, 1, 7, 2, 6, 5, 4]
    lines = "".join(f"{key}\t{at}{ending}" for key, at in zip(keys, offsets, strict=True))
    rec.with_suffix(".idx").write_bytes(lines.encode())
    assert len(open_index(rec)) == 5
    read, at = read_idx(rec.with_suffix(".idx"))
    assert (read.tolist(), at.tolist()) == (keys, offsets)


def test_a_younger_idx_is_checked_although_the_sidecar_stands(small):
    rec, _, _ = small
    open_index(rec)
    idx = rec.with_suffix(".idx")
    idx.write_text("0\t0\n")
    future = rec.with_suffix(".fsidx").stat().st_mtime_ns + 10**9
    os.utime(idx, ns=(future, future))
    with pytest.raises(RecordError, match="leaves out"):
        open_index(rec)
