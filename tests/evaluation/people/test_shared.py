"""Shared people: test images of training identities are found, those of others are not."""

import numpy as np
import pytest

from evaluation.people.centers import find_centers
from evaluation.people.shared import find_shared_people
from facestream import UserError
from tests.evaluation.people.crowd import crowd


def test_images_of_training_people_are_found():
    rows, labels = crowd(260, 6, noise=0.6)
    training = labels < 200
    directions = find_centers(rows[training], labels[training], num_classes=200).directions
    held = np.flatnonzero(labels >= 200)
    known = np.flatnonzero(labels < 10)
    sets = {"strangers": rows[held], "mixed": np.concatenate([rows[held[:100]], rows[known]])}
    sets["mixed"][5] = 0  # damaged
    found = find_shared_people(directions, sets)
    assert {one.set for one in found.found} == {"mixed"}
    assert {one.place for one in found.found} == {100 + k for k in range(len(known))}
    assert all(one.label == labels[known[one.place - 100]] for one in found.found)
    assert found.expected_false == pytest.approx((360 + 100 + 60 - 1) * 1e-3, rel=0.01)


@pytest.mark.parametrize(("people", "images"), [(3, 40), (40, 3)])
def test_too_few_to_tell_are_refused(people, images):
    rows, labels = crowd(people, 5)
    directions = find_centers(rows, labels, num_classes=people).directions
    with pytest.raises(UserError, match=f"found {images} test images and {people} identities"):
        find_shared_people(directions, {"set": rows[:1].repeat(images, axis=0)})
