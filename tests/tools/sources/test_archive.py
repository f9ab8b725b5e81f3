"""A .zip or an LMDB as a source: the identities that training finds in it."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from pipeline.passed_over import PassedOver
from pipeline.records.recordio import RecordError
from tests.pipeline.containers.test_lmdb_images import write as write_lmdb
from tools.pack_rec import find_sources
from tools.sources.archive import read_archive

IMAGES = {"bea/1.jpg": b"\xff\xd8b1", "ann/1.jpg": b"\xff\xd8a1", "bea/2.jpg": b"\xff\xd8b2"}


def as_zip(root: Path) -> Path:
    with zipfile.ZipFile(root / "faces.zip", "w", zipfile.ZIP_DEFLATED) as opened:
        for name, image in IMAGES.items():
            opened.writestr(name, image)
    return root / "faces.zip"


def as_lmdb(root: Path) -> Path:
    return write_lmdb(root / "faces", IMAGES)


@pytest.mark.parametrize("write", [as_zip, as_lmdb])
def test_identities_come_by_name_each_with_its_images(tmp_path, write):
    path = write(tmp_path)
    assert find_sources([path]) == ("archive", [path])
    found = [(name, sorted(images)) for name, images, _ in read_archive(path, PassedOver())]
    assert found == [("ann", [b"\xff\xd8a1"]), ("bea", [b"\xff\xd8b1", b"\xff\xd8b2"])]


def test_nothing_is_written_beside_the_archive(tmp_path):
    list(read_archive(as_zip(tmp_path), PassedOver()))
    assert [path.name for path in tmp_path.iterdir()] == ["faces.zip"]


def test_an_image_without_a_folder_is_nobodys_and_is_counted(tmp_path):
    path = as_zip(tmp_path)
    with zipfile.ZipFile(path, "a") as opened:
        opened.writestr("3.jpg", b"\xff\xd8")
    passed_over = PassedOver()
    assert len(list(read_archive(path, passed_over))) == 2
    assert passed_over.counts == {"image without a label": 1}


def test_a_damaged_archive_is_refused_with_what_mends_it(tmp_path):
    path = as_zip(tmp_path)
    with zipfile.ZipFile(path, "a") as opened:
        opened.writestr("ann/2.jpg", b"")
    with pytest.raises(RecordError, match=r"damaged in 1 places: .*rec2idx.py .*--repair"):
        list(read_archive(path, PassedOver()))
