"""clean: twins first, then photographs of two people, then wrong labels; damage is passed over."""

import numpy as np
import pytest

from evaluation.people.centers import find_centers
from evaluation.people.cleaning import MISLABELED, CleaningError, clean
from evaluation.people.training_images import sizes_found, training_images
from evaluation.protocols.protocol import unit_rows
from pipeline.records.index import open_index
from pipeline.records.recordio import RecordWriter, pack_image
from pipeline.records.write_set import pack_set
from synthetic import encode_jpeg, render
from tests.evaluation.leaks.planted import COPIES, decode
from tests.evaluation.people.crowd import crowd

PEOPLE, IMAGES = 60, 8


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory):
    """A set with one person under two labels, two photographs of two people, and wrong labels.

    Its images are of one drawn face each; the embeddings are made up beside them.
    """
    rows, right = crowd(PEOPLE, IMAGES)
    images = [encode_jpeg(render(k, 0, size=64)) for k in range(len(rows))]
    labels = right.copy()
    labels[right == 9] = np.arange(IMAGES) % 2 * (PEOPLE - 9) + 9  # half of them under a new label
    wrong = [20 * IMAGES, 33 * IMAGES + 3, 41 * IMAGES + 7]
    labels[wrong] = [5, 6, 7]
    equal, near = 30 * IMAGES + 1, 31 * IMAGES + 1  # of person 2, filed under 30 and 31
    images[equal], rows[equal] = images[2 * IMAGES], rows[2 * IMAGES]
    mirrored = COPIES["mirrored"](decode(images[2 * IMAGES + 1]))
    images[near], rows[near] = mirrored, 0.9 * rows[2 * IMAGES + 1]
    order = np.argsort(labels, kind="stable")
    folder = tmp_path_factory.mktemp("spoilt")
    parts = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    pack_set(folder, [[images[k] for k in part] for part in parts])
    place = np.argsort(order)
    return open_index(folder), rows[order], place[wrong], place[[equal, near]]


def test_all_that_is_wrong_is_found(spoilt):
    index, rows, wrong, doubled = spoilt
    found = clean(index, rows, threads=2)
    assert found.twins.groups == [[9, PEOPLE]]
    assert set(found.left_out) == {*wrong.tolist(), *doubled.tolist()}
    assert {found.left_out[image] for image in wrong} == {MISLABELED}
    pairs = {tuple(sorted((one.first, one.second))) for one in found.duplicates}
    assert pairs == {(2 * IMAGES, doubled[0]), (2 * IMAGES + 1, doubled[1])}
    assert sorted(one.likeness == 1 for one in found.duplicates) == [False, True]
    assert [*found.left_out] == sorted(found.left_out)


def test_sub_centers_of_a_head_find_the_same(spoilt):
    index, rows, wrong, doubled = spoilt
    labels = index.labels(np.arange(len(index)))
    own = find_centers(rows, labels, num_classes=PEOPLE + 1).directions
    away = np.random.default_rng(0).standard_normal(own.shape).astype(np.float32)
    subcenters = np.stack([unit_rows(away), own], axis=1)
    found = clean(index, rows, subcenters=subcenters)
    assert set(found.left_out) == {*wrong.tolist(), *doubled.tolist()}


def test_what_was_damaged_is_neither_judged_nor_left_out(spoilt):
    index, rows, wrong, _ = spoilt
    rows = rows.copy()
    rows[wrong[0]] = 0
    found = clean(index, rows)
    assert wrong[0] not in found.left_out
    assert np.isnan(found.mislabeled.margins[wrong[0]])


def test_a_photograph_that_cannot_be_read_is_no_copy(tmp_path):
    rows, labels = crowd(5, 4)
    with RecordWriter(tmp_path / "train.rec") as writer:
        for k, label in enumerate(labels):
            writer.write(pack_image(b"no image %d" % (k // 2), float(label), k))
    rows[4:] = rows[0]  # all are near one another
    found = clean(open_index(tmp_path), rows)
    assert found.duplicates == []


def test_copies_of_one_label_are_none_of_two_people(tmp_path):
    rows, _ = crowd(5, 4)
    face = encode_jpeg(render(0, 0, size=64))
    pack_set(tmp_path, [[face, face, face, face], *[[encode_jpeg(render(k, 0))] for k in range(4)]])
    index = open_index(tmp_path)
    assert clean(index, rows[: len(index)]).duplicates == []


def test_too_few_identities_are_refused(tmp_path):
    pack_set(tmp_path, [[encode_jpeg(render(k, 0))] for k in range(3)])
    with pytest.raises(CleaningError, match="has 3 identities: expected 4 at least"):
        clean(open_index(tmp_path), np.ones((3, 8), np.float32))


def test_training_images_are_named_by_their_records(spoilt):
    index, *_ = spoilt
    images = training_images(index, size=64)
    assert images.names[3] == f"record {index.records['offset'][3]}"
    assert len(images) == len(images.names) == len(index)
    assert sizes_found(index) == [(64, 64)]
    pixels, faults = images.load(range(2, 5))
    assert pixels.shape == (3, 64, 64, 3)
    assert not faults
    with pytest.raises(ValueError, match=r"images are 64×64 pixels, and the model takes 112×112"):
        training_images(index, size=112)
