"""A folder of identity folders is a set as it lies, and says so where it changes."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.collection import Collection
from pipeline.containers.open_records import make_index, open_records
from pipeline.containers.set_index import index_files
from pipeline.passed_over import PassedOver
from pipeline.record_filter import read_filter
from pipeline.records.index import RecordIndex
from pipeline.records.recordio import RecordError
from tools.sources.folders import read_folders


def picture(shade: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (shade, 90, 120)).save(file, "PNG")
    return file.getvalue()


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


@pytest.fixture
def faces(tmp_path) -> Path:
    files = {f"{who}/{n}.png": picture(ord(who[0]) + n) for who in ("bob", "anna") for n in (2, 1)}
    return write(tmp_path / "faces", files | {"zoe/a.JPG": picture(7), "bob/.hidden": b"x"})


def contents(index: RecordIndex) -> list[bytes]:
    return [source() for source in Collection.of(index).sources(np.arange(len(index)))]


def test_every_image_is_there_with_the_label_of_its_folder(faces):
    index = open_records(faces)
    names = ["anna/1.png", "anna/2.png", "bob/1.png", "bob/2.png", "zoe/a.JPG"]
    assert contents(index) == [(faces / name).read_bytes() for name in names]
    assert index.labels(np.arange(5)).tolist() == [0, 0, 1, 1, 2]
    assert list(index.names) == ["anna", "bob", "zoe"]
    assert index.place(4) == f"{faces / 'zoe/a.JPG'}: the image"
    assert (index.summary.images, index.summary.identities, index.summary.num_classes) == (5, 3, 3)


@pytest.mark.parametrize("people", [["10", "9", "007"], ["b", "B", "é", "a b"]])
def test_labels_and_images_are_those_that_packing_gives(tmp_path, people):
    root = tmp_path / "faces"
    write(root, {f"{who}/{n}.png": picture(n) for who in people for n in range(3)})
    write(root, {f"{people[0]}/c.txt": b"text", f"{people[1]}/bare": picture(9)})
    (root / "nobody").mkdir()
    index, packed = open_records(root), list(read_folders(root, PassedOver()))
    assert list(index.names) == [identity.name for identity in packed]
    assert contents(index) == [image for identity in packed for image in identity.images]


def test_the_second_opening_looks_at_no_image(faces, monkeypatch):
    first = open_records(faces)
    monkeypatch.setattr("pipeline.containers.folder._list", None)
    second = open_records(faces)
    assert second.file.fingerprint == first.file.fingerprint
    assert contents(second) == contents(first)
    assert second.summary == first.summary


def test_the_fingerprint_is_of_the_content_alone(faces, tmp_path):
    copy = tmp_path / "elsewhere"
    shutil.copytree(faces, copy)
    assert open_records(copy).file.fingerprint == open_records(faces).file.fingerprint
    other = picture(200)
    assert len(other) == len(picture(ord("b") + 2)), "only its bytes change"
    (copy / "bob/2.png").write_bytes(other)
    assert open_records(copy).file.fingerprint != open_records(faces).file.fingerprint


def test_a_folder_that_is_read_only_is_indexed_in_the_cache(faces, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    faces.chmod(0o555)
    open_records(faces)
    (written,) = [file for file in index_files(faces) if file.is_file()]
    assert tmp_path / "cache" in written.parents
    monkeypatch.setattr("pipeline.containers.folder._list", None)
    assert len(open_records(faces)) == 5
    faces.chmod(0o755)


def test_an_image_that_comes_later_is_taken_in(faces):
    open_records(faces)
    write(faces, {"bob/3.png": picture(3)})
    index = open_records(faces)
    assert index.labels(np.arange(6)).tolist() == [0, 0, 1, 1, 1, 2]


@pytest.mark.parametrize("change", ["new", "gone", "renamed"])
def test_identities_that_would_move_labels_are_refused_until_numbered_again(faces, change):
    open_records(faces)
    if change == "new":
        write(faces, {"ben/1.png": picture()})
        message = r"has 4 identities, and had 3.*1 new \(ben\)"
    elif change == "gone":
        for file in (faces / "anna").iterdir():
            file.unlink()
        message = r"has 2 identities, and had 3.*1 gone \(anna\)"
    else:
        (faces / "anna").rename(faces / "cleo")
        message = r"1 new \(cleo\), 1 gone \(anna\)"
    with pytest.raises(RecordError, match=rf"{message}.*Labels.*tools/rec2idx.py {faces}"):
        open_records(faces)
    again = make_index(faces)
    assert list(open_records(faces).names) == list(again.names) == sorted(again.names)


def test_what_is_no_image_is_skipped_and_reported(faces, caplog):
    write(faces, {"bob/list.txt": b"x", "bob/inside/1.png": picture(), "beside.png": picture()})
    (faces / "empty").mkdir()
    assert len(open_records(faces)) == 5
    for reason in ("no image (.txt)", "folder inside an identity's", "folder without an image"):
        assert reason in caplog.text


def test_empty_files_and_broken_links_are_damage_that_is_counted(faces):
    write(faces, {"bob/0.png": b""})
    (faces / "bob/link.png").symlink_to("nowhere.png")
    summary = open_records(faces).summary
    assert (summary.images, summary.damaged_spans) == (5, 2)
    with pytest.raises(RecordError, match=r"2 lost .*bob/0.png is an empty file"):
        summary.check_damage(faces, 0.1)
    summary.check_damage(faces, 1)
    assert open_records(faces).summary == summary, "as the index has it"


def test_an_image_that_is_gone_or_changed_is_one_images_fault(faces):
    index = open_records(faces)
    (faces / "anna/1.png").unlink()
    (faces / "bob/1.png").write_bytes(b"short")
    (faces / "bob/2.png").write_bytes(picture() + b"more")
    for place, why in enumerate(["No such file", None, "5 bytes", "more bytes"]):
        if why is None:
            assert index.image(place).tobytes() == (faces / "anna/2.png").read_bytes()
            continue
        with pytest.raises(RecordError, match=why):
            index.image(place)
    index.file.check_unchanged()
    faces.rename(faces.with_name("moved"))
    with pytest.raises(RecordError, match=r"is gone.*put it back"):
        index.file.check_unchanged()


def test_a_damaged_index_is_made_again(faces, caplog):
    open_records(faces)
    (file, *_) = index_files(faces)
    damaged = bytearray(file.read_bytes())
    damaged[-3] ^= 1
    file.write_bytes(damaged)
    assert len(open_records(faces)) == 5
    assert "is damaged" in caplog.text


def test_a_list_leaves_out_people_and_images(faces, tmp_path):
    index = open_records(faces)
    left_out = tmp_path / "leave_out.txt"
    left_out.write_text("identity 0\nrecord 3\n")
    (kept,) = read_filter(left_out, [index])
    assert kept.tolist() == [2, 4]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"imgs/anna/1.jpg": b"x"},
            r"no images in its 1 fold.*a level deeper, name that:.*imgs",
        ),
        ({"anna/1.gif": b"GIF"}, r"no images.*\(.gif\): 1"),
        ({"1.png": b"x"}, r"no train.rec, and no folders"),
    ],
)
def test_a_folder_without_identities_says_what_was_found(tmp_path, files, message):
    with pytest.raises(RecordError, match=message):
        open_records(write(tmp_path / "set", files))


def test_names_that_are_no_text_are_kept(tmp_path):
    root = tmp_path / "faces"
    for name in (b"caf\xe9", b"anna"):
        folder = os.fsencode(root) + b"/" + name
        os.makedirs(folder)
        with open(folder + b"/\xff.png", "wb") as file:
            file.write(picture())
    index = open_records(root)
    assert list(index.names) == ["anna", "caf\udce9"]
    assert contents(open_records(root)) == [picture(), picture()]


def test_links_that_lead_back_to_themselves_and_pipes_are_no_images(faces):
    for name in ("loop", "bob/loop", "bob/loop.txt", "bob/loop.png"):
        (faces / name).symlink_to(Path(name).name)
    for name in ("pipe", "bob/pipe", "bob/pipe.png"):
        os.mkfifo(faces / name)
    index = open_records(faces)
    assert (len(index), index.summary.damaged_spans) == (5, 2), "loop.png and pipe.png"
    assert len(open_records(faces)) == 5


@pytest.mark.parametrize("mark", ['"', "\\", "\x01", "é", "\U0001f600"])
def test_damage_under_names_of_any_marks_fits_into_the_index(tmp_path, mark):
    who = mark * (200 // len(mark.encode()))
    files = {f"{who}/{n}.png": b"" for n in range(25)} | {f"{who}/ok.png": picture()}
    root = write(tmp_path / who, files)
    made = open_records(root)
    (index, *_) = index_files(root)
    assert index.is_file()
    assert made.summary.damaged_spans == open_records(root).summary.damaged_spans == 25


def test_an_identity_may_be_called_as_shards_are(faces):
    write(faces, {"x.tar/1.png": picture(), "y.parquet/1.png": picture()})
    assert list(open_records(faces).names) == ["anna", "bob", "x.tar", "y.parquet", "zoe"]


def test_an_index_left_in_the_cache_says_nothing_of_labels_numbered_again(
    faces, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    faces.chmod(0o555)
    open_records(faces)
    faces.chmod(0o755)
    write(faces, {"carl/1.png": picture()})
    with pytest.raises(RecordError, match=r"1 new \(carl\)"):
        open_records(faces)
    make_index(faces)
    write(faces, {"carl/2.png": picture(1)})
    assert len(open_records(faces)) == 7
    (faces / "carl").rename(faces / "dora")
    with pytest.raises(RecordError, match=r"1 new \(dora\), 1 gone \(carl\)"):
        open_records(faces)
