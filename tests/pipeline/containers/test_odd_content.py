"""Odd names and contents in sets of each form: images, damage or what is passed over; no crash."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import lmdb
import numpy as np
import pytest

from pipeline.containers.open_records import open_records

JPEG = b"\xff\xd8 an image"
Files = dict[bytes, bytes | None]  # path to content; None for a folder


def as_folder(root: Path, files: Files) -> Path:
    for name, content in files.items():
        path = os.fsencode(root / "faces") + b"/" + name
        os.makedirs(path if content is None else os.path.dirname(path), exist_ok=True)
        if content is not None:
            with open(path, "wb") as file:
                file.write(content)
    return root / "faces"


def as_zip(root: Path, files: Files) -> Path:
    with zipfile.ZipFile(root / "faces.zip", "w") as opened:
        for name, content in files.items():
            text = name.decode("utf-8") + "/" * (content is None)
            opened.writestr(text, content or b"")
    return root / "faces.zip"


def as_tar(root: Path, files: Files) -> Path:
    """Its labels are those of .cls, the first folders."""
    with tarfile.open(root / "faces.tar", "w") as tar:
        for name, content in files.items():
            label = name.partition(b"/")[0]
            sample = name.rpartition(b".")[0]
            for path, inside in ((name, content), (sample + b".cls", label)):
                member = tarfile.TarInfo(path.decode(errors="surrogateescape"))
                if inside is None:
                    member.type = tarfile.DIRTYPE
                else:
                    member.size = len(inside)
                tar.addfile(member, io.BytesIO(inside or b""))
    return root / "faces.tar"


def as_lmdb(root: Path, files: Files) -> Path:
    place = str(root / "faces")
    with lmdb.open(place, map_size=1 << 26) as opened, opened.begin(write=True) as writing:
        for name, content in files.items():
            writing.put(name, content or b"")
    return root / "faces/data.mdb"


FORMS = {"folder": as_folder, "zip": as_zip, "tar": as_tar, "LMDB": as_lmdb}
Write = Callable[[Path, Files], Path]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "name",
    [
        "new\nline",
        "carriage\rreturn",
        'quo"te',
        "back\\slash",
        "\x1b[31m",
        "a  b",
        "né",
        "日本",
        "%s",
    ],
)
def test_people_may_be_called_anything(tmp_path, form, name):
    raw = name.encode()
    files = {raw + b"/1.jpg": JPEG, raw + b"/2.jpg": JPEG + b"2", b"zz/3.jpg": JPEG + b"3"}
    path = FORMS[form](tmp_path, files)
    for index in (open_records(path), open_records(path)):
        assert list(index.names) == sorted([name, "zz"])
        called = {index.names[label]: [] for label in (0, 1)}
        for label, source in zip(index.records["label"], index.sources(np.arange(3))):
            called[index.names[label]].append(source())
        assert sorted(called[name]) == [JPEG, JPEG + b"2"]
        assert called["zz"] == [JPEG + b"3"]
        assert all(name in index.place(at) or "zz" in index.place(at) for at in range(3))


@pytest.mark.parametrize("form", ["folder", "LMDB"])
def test_names_that_are_no_text_are_kept(tmp_path, form):
    path = FORMS[form](tmp_path, {b"caf\xe9/\xff.jpg": JPEG, b"anna/1.jpg": JPEG + b"2"})
    for index in (open_records(path), open_records(path)):
        assert list(index.names) == ["anna", "caf\udce9"]
        assert sorted(source() for source in index.sources(np.arange(2))) == [JPEG, JPEG + b"2"]


@pytest.mark.parametrize("form", FORMS)
def test_images_without_a_byte_are_damage(tmp_path, form):
    path = FORMS[form](tmp_path, {b"a/0.jpg": b"", b"a/1.jpg": JPEG, b"b/2.jpg": JPEG + b"2"})
    index = open_records(path)
    assert (len(index), index.summary.damaged_spans) == (2, 1)
    assert sorted(index.records["label"]) == [0, 1]


@pytest.mark.parametrize("form", ["folder", "zip", "tar"])
def test_a_folder_that_is_called_as_an_image_is_none(tmp_path, form):
    path = FORMS[form](tmp_path, {b"a/1.jpg": JPEG, b"a/2.jpg": None, b"b/3.jpg": JPEG + b"3"})
    index = open_records(path)
    assert [source() for source in index.sources(np.arange(len(index)))] == [JPEG, JPEG + b"3"]


def test_links_are_followed_wherever_they_lead_and_to_nothing_are_damage(tmp_path):
    """A set may be a choice of links to the images of another one."""
    other = as_folder(tmp_path / "other", {b"x/1.jpg": JPEG, b"x/2.jpg": JPEG + b"2"})
    path = as_folder(tmp_path, {b"a/0.jpg": JPEG + b"0"})
    (path / "a/1.jpg").symlink_to(other / "x/1.jpg")
    (path / "b").symlink_to(other / "x")
    (path / "a/gone.jpg").symlink_to("/nowhere.jpg")
    index = open_records(path)
    found = [source() for source in index.sources(np.arange(len(index)))]
    assert found == [JPEG + b"0", JPEG, JPEG, JPEG + b"2"]
    assert index.summary.damaged_spans == 1


@pytest.mark.parametrize("form", ["zip", "tar"])
def test_a_link_in_an_archive_leads_nowhere(tmp_path, form):
    """Nothing outside the archive is read."""
    (tmp_path / "secret.jpg").write_bytes(JPEG)
    path = FORMS[form](tmp_path, {b"a/1.jpg": JPEG + b"1", b"b/2.jpg": JPEG + b"2"})
    target = str(tmp_path / "secret.jpg")
    if form == "zip":
        with zipfile.ZipFile(path, "a") as opened:
            link = zipfile.ZipInfo("a/link.jpg")
            link.external_attr = 0o120777 << 16
            opened.writestr(link, target)
    else:
        with tarfile.open(path, "a") as tar:
            link = tarfile.TarInfo("a/link.jpg")
            link.type, link.linkname = tarfile.SYMTYPE, target
            tar.addfile(link)
    index = open_records(path)
    assert JPEG not in [source() for source in index.sources(np.arange(len(index)))]
