"""find_copies: every planted copy, nothing else; damage is passed over and counted."""

import numpy as np
import pytest

from evaluation.images import encoded_images
from evaluation.leaks.copies import find_copies
from evaluation.pair_set import read_bin
from pipeline.records.index import open_index
from pipeline.records.recordio import RecordWriter, pack_image
from pipeline.records.write_set import pack_set
from synthetic import encode_jpeg, render
from tests.evaluation.leaks.planted import COPIES, FACES, decode, encode

needs_faces = pytest.mark.skipif(not FACES.exists(), reason="faces_lfw_dev is not on this machine")


def images_of(encoded):
    return encoded_images(encoded, names=[f"image {k}" for k in range(len(encoded))], size=112)


def test_copies_are_found_and_named_by_kind(tmp_path):
    train = [encode_jpeg(render(k, 0)) for k in range(40)]
    tests = [encode_jpeg(render(100 + k, 0)) for k in range(12)]
    planted = [copy(decode(tests[k])) for k, copy in enumerate(COPIES.values())]
    pack_set(tmp_path, [train, [tests[0], *planted]])
    sets = {"a": images_of(tests[:6]), "b": images_of(tests)}
    copies = find_copies(open_index(tmp_path), sets, threads=2)
    found = {(one.record, one.set, one.place, one.kind) for one in copies.found}
    expected = {(40, name, 0, "same image") for name in sets}
    for k in range(len(planted)):
        expected |= {(41 + k, name, k, "near copy") for name in sets if k < len(sets[name])}
    assert found == expected
    assert not copies.damaged
    assert not copies.damaged_tests


def test_damaged_images_are_passed_over(tmp_path):
    faces = [encode_jpeg(render(k, 0)) for k in range(6)]
    with RecordWriter(tmp_path / "train.rec") as writer:
        for k, image in enumerate([*faces[:3], b"no image", faces[3][:500]]):
            writer.write(pack_image(image, 0.0, k))
    tests = images_of([faces[0], b"no image either", faces[5]])
    copies = find_copies(open_index(tmp_path), {"set": tests})
    assert sorted(copies.damaged) == [3, 4]
    assert "cannot be decoded" in copies.damaged[3]
    assert list(copies.damaged_tests) == [("set", 1)]
    assert [(one.record, one.place, one.kind) for one in copies.found] == [(0, 0, "same image")]


def test_pictures_without_detail_are_no_copies_and_none_at_all_are_no_fault(tmp_path):
    gray = [encode(np.full((112, 112, 3), level, np.uint8)) for level in (90, 130)]
    pack_set(tmp_path, [gray])
    index = open_index(tmp_path)
    dark = images_of([encode(np.full((112, 112, 3), 9, np.uint8))])
    assert find_copies(index, {"dark": dark}).found == []
    nothing = find_copies(index, {"bad": images_of([b"no image"])})
    assert nothing.found == []
    assert len(nothing.damaged_tests) == 1


def test_images_of_one_photo_with_several_crops_are_told_apart(tmp_path):
    """What counts for near copies is what the network sees, not the file it is cut from."""
    faces = [render(k, 0) for k in range(4)]
    images = images_of([encode_jpeg(faces[0])] * 2)

    def load(places):
        return np.stack([faces[1 + place] for place in places]), {}

    cut = type(images)(images.names, images.read, load, 112, "two crops")
    pack_set(tmp_path, [[encode_jpeg(face, quality=60) for face in faces]])
    copies = find_copies(open_index(tmp_path), {"cut": cut})
    assert [(one.record, one.place) for one in copies.found] == [(1, 0), (2, 1)]


@needs_faces
@pytest.mark.parametrize("copy", ["quality 30", "cropped by 4 on each side", "mirrored"])
def test_all_of_some_real_faces_are_found_and_no_other(copy, tmp_path):
    index = open_index(FACES)
    train = [bytes(index.image(k)) for k in range(0, 600, 2)]
    tests = list(dict.fromkeys(read_bin(FACES / "lfw_dev_val.bin").images))[:150]
    pack_set(tmp_path, [train, [COPIES[copy](decode(image)) for image in tests]])
    copies = find_copies(open_index(tmp_path), {"set": images_of(tests)}, threads=2)
    pairs = [(one.record - len(train), one.place) for one in copies.found]
    assert set(pairs) == {(k, k) for k in range(len(tests))}
