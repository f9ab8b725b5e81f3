"""Images in a .zip: read where they lie; what may not be believed is refused or a damaged image."""

from __future__ import annotations

import random
import zipfile
from pathlib import Path

import pytest

from pipeline.containers import zip_images
from pipeline.containers.stored import NO_LABEL
from pipeline.containers.zip_images import ZipError, stored_zip
from pipeline.records.recordio import RecordError

IMAGES = {f"{'abc'[k % 3]}/{k}.jpg": random.Random(k).randbytes(500) + bytes(500) for k in range(9)}


def write(path: Path, members: dict[str, bytes], how: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", how) as opened:
        for name, content in members.items():
            opened.writestr(name, content)
    return path


@pytest.mark.parametrize("how", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_images_are_read_by_their_paths_and_others_passed_over(tmp_path, how):
    others = {
        "notes.txt": b"no image",
        "__MACOSX/a/._0.jpg": b"x",
        ".hidden/0.jpg": b"x",
        "d/": b"",
    }
    found = stored_zip(write(tmp_path / "a.zip", IMAGES | others, how))
    assert list(found.names) == sorted(IMAGES)
    assert [found.read(place) for place in range(len(IMAGES))] == [
        IMAGES[name] for name in sorted(IMAGES)
    ]


def test_the_first_folder_says_who_it_is(tmp_path):
    labels = stored_zip(write(tmp_path / "a.zip", IMAGES | {"z.jpg": b"x"})).labels()
    assert labels.numbers.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [NO_LABEL]
    assert labels.names == ["a", "b", "c"]
    assert stored_zip(write(tmp_path / "flat.zip", {"a.jpg": b"x"})).labels() is None


def test_the_one_folder_that_was_packed_is_nobodys_name(tmp_path):
    packed = {f"photos/crops/{name}": content for name, content in IMAGES.items()}
    found = stored_zip(write(tmp_path / "a.zip", packed))
    assert found.labels().names == ["a", "b", "c"]
    assert found.names[0].startswith("photos/crops/a/")
    alone = stored_zip(write(tmp_path / "b.zip", {"photos/ann/0.jpg": b"x", "photos/1.jpg": b"x"}))
    assert alone.labels().names == ["photos"]
    assert stored_zip(write(tmp_path / "c.zip", {"ann/0.jpg": b"x"})).labels().names == ["ann"]


def test_what_is_before_the_archive_does_not_move_its_images(tmp_path):
    """As in a program that unpacks itself."""
    path = write(tmp_path / "a.zip", IMAGES)
    path.write_bytes(b"#!/bin/sh\n" * 20 + path.read_bytes())
    found = stored_zip(path)
    assert found.read(3) == IMAGES[found.names[3]]


def test_known_by_changes_with_the_file(tmp_path):
    path = write(tmp_path / "a.zip", IMAGES)
    before = stored_zip(path).known_by
    assert stored_zip(path).known_by == before
    assert stored_zip(write(path, IMAGES | {"d/0.jpg": b"x"})).known_by != before


@pytest.mark.parametrize("part", [0.0, 0.5, 0.99])
def test_a_file_that_is_cut_off_is_named(tmp_path, part):
    path = write(tmp_path / "a.zip", IMAGES)
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(ZipError, match=r"a\.zip cannot be read as a \.zip"):
        stored_zip(path)


def test_damage_inside_costs_the_images_that_it_is_in(tmp_path):
    path = write(tmp_path / "a.zip", IMAGES)
    content = bytearray(path.read_bytes())
    content[200] ^= 255  # in what is packed of the first one
    path.write_bytes(content)
    found = stored_zip(path)
    with pytest.raises(RecordError, match="is damaged"):
        found.read(found.names.index("a/0.jpg"))
    assert found.read(found.names.index("b/1.jpg")) == IMAGES["b/1.jpg"]


def test_an_image_that_unpacks_to_more_than_any_has_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(zip_images, "MOST_BYTES", 999)
    with pytest.raises(ZipError, match=r"a/0\.jpg unpacks to 1,000 bytes"):
        stored_zip(write(tmp_path / "a.zip", IMAGES))


def test_an_image_that_unpacks_to_more_than_it_says_is_damaged_and_not_unpacked(tmp_path):
    path = write(tmp_path / "a.zip", {"a.jpg": bytes(10_000_000)})
    said = (10_000_000).to_bytes(4, "little")
    path.write_bytes(path.read_bytes().replace(said, (1000).to_bytes(4, "little")))
    with pytest.raises(RecordError, match="it is not what the"):
        stored_zip(path).read(0)


def test_an_encrypted_one_and_other_ways_to_compress_are_refused(tmp_path):
    path = write(tmp_path / "a.zip", {"a.jpg": b"x"}, zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\1\2")
    content[at + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(ZipError, match="is encrypted"):
        stored_zip(path)
    with pytest.raises(ZipError, match="is compressed in way 12, expected stored or deflated"):
        stored_zip(write(tmp_path / "b.zip", {"a.jpg": b"x"}, zipfile.ZIP_BZIP2))
