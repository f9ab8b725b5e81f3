"""overlap.json: comes back as it went, names images of the very set alone, refuses what is not."""

import json

import pytest

from evaluation.images import encoded_images
from evaluation.leaks.overlap import (
    NEAR_COPY,
    SAME_IMAGE,
    SAME_PERSON,
    Finding,
    Overlap,
    OverlapError,
    read_overlap,
)
from pipeline.named_path import PathError

IMAGES = encoded_images([b"a", b"b", b"c"], names=["image 0", "image 3", "image 4"], size=112)
OTHERS = encoded_images([b"a", b"b", b"x"], names=IMAGES.names, size=112)
ABOUT = {"fingerprint": IMAGES.fingerprint, "images": 3, "damaged": 0}
OVERLAP = Overlap(
    training={"path": "train.rec", "fingerprint": "f", "images": 9, "identities": 3, "damaged": 0},
    sets={"lfw": ABOUT, "other": {"fingerprint": "0", "images": 3, "damaged": 0}},
    settings={NEAR_COPY: "as it is said"},
    found=[
        Finding(SAME_IMAGE, "lfw", "image 0", 1, 512, 1.0),
        Finding(NEAR_COPY, "lfw", "image 3", 1, 512, 0.97),
        Finding(NEAR_COPY, "other", "image 4", 2, 80, 0.96),
        Finding(SAME_PERSON, "lfw", "image 3", 7, None, 0.71),
    ],
    model={"digest": "d"},
)


def test_it_comes_back_as_it_went(tmp_path):
    OVERLAP.write(tmp_path / "overlap.json")
    assert read_overlap(tmp_path / "overlap.json") == OVERLAP


def test_images_to_leave_out_are_those_of_the_very_set():
    assert OVERLAP.names_in(IMAGES) == {"image 0", "image 3"}
    assert OVERLAP.names_in(IMAGES, kinds=[SAME_IMAGE]) == {"image 0"}
    with pytest.raises(OverlapError, match=r"about lfw, other, and not about this set of 3 images"):
        OVERLAP.names_in(OTHERS)


def test_what_to_leave_out_of_training_is_named_once():
    lines = OVERLAP.leave_out().splitlines()
    assert [line.partition("  #")[0] for line in lines[1:]] == [
        "record 512",
        "record 80",
        "identity 7",
    ]
    assert "same image: lfw, image 0" in lines[1]


def test_a_summary_says_what_was_looked_for():
    assert OVERLAP.summary()["lfw"] == "of 3 images: same image 1, near copy 1, same person 1"
    alone = Overlap(OVERLAP.training, OVERLAP.sets, {}, OVERLAP.found[:1])
    assert alone.summary()["lfw"] == "of 3 images: same image 1, near copy 0"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("[1, 2]", "cannot be read as an overlap file"),
        ("{", "cannot be read as an overlap file"),
        (json.dumps({"format": 2}), "is of format 2; this version of Facestream reads format 1"),
        (json.dumps({"format": 1, "found": []}), "cannot be read as an overlap file"),
        (
            json.dumps(
                {"format": 1, "training": {}, "sets": {}, "settings": {}, "found": [1], "model": {}}
            ),
            "cannot be read as an overlap file",
        ),
    ],
)
def test_what_is_no_overlap_file_is_refused(tmp_path, content, complaint):
    path = tmp_path / "overlap.json"
    path.write_text(content)
    with pytest.raises(OverlapError, match=complaint):
        read_overlap(path)


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(PathError, match="does not exist"):
        read_overlap(tmp_path / "none.json")
