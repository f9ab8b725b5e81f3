"""A page that shows what a leak check found: each test image beside what the training set has."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from evaluation.images import Images
from evaluation.leaks.overlap import NEAR_COPY, SAME_IMAGE, SAME_PERSON, Finding, Overlap
from evaluation.leaks.registration import SAME_PHOTOGRAPH
from evaluation.people.training_images import stored_picture
from evaluation.report.picture_page import Section, Strip, picture_page
from pipeline.records.index import RecordIndex

_TRAINING = "training set"  # whose pictures a page shows, beside those of sets


def overlap_page(
    index: RecordIndex, sets: Mapping[str, Images], overlap: Overlap, *, faces: bool
) -> str:
    """Each finding with its two pictures: the test image, and what the training set has."""
    records = index.records
    by_label = np.argsort(records["label"], kind="stable")
    sorted_labels = records["label"][by_label]
    places = {
        name: {image: place for place, image in enumerate(images.names)}
        for name, images in sets.items()
    }

    def picture(where: str, name: str) -> bytes | None:
        if where == _TRAINING:
            return stored_picture(index, int(name))
        return sets[where].picture(places[where][name])

    def strip(one: Finding) -> Strip:
        offset = one.offset
        if offset is None:
            first = by_label[np.searchsorted(sorted_labels, one.label)]
            offset = int(records["offset"][first])
        what = "cosine" if one.kind == SAME_PERSON else "likeness"
        words = [
            f"{what} {one.likeness:.3f}",
            f"{one.set}: {one.image}",
            f"training: label {one.label}, record {offset}",
        ]
        return Strip([(one.set, one.image), (_TRAINING, str(offset))], words)

    about = {
        SAME_IMAGE: "The bytes are equal.",
        NEAR_COPY: f"Details correlate by {SAME_PHOTOGRAPH:g} or more; the least alike first.",
        SAME_PERSON: "Left the test image, right one of the identity; the least near first.",
    }
    sections = [
        Section(
            kind.capitalize(),
            about[kind],
            [
                strip(one)
                for one in sorted(overlap.found, key=lambda one: one.likeness)
                if one.kind == kind
            ],
        )
        for kind in overlap.kinds
    ]
    return picture_page(
        "Is the test in the training set?",
        overlap.summary(),
        sections,
        pictures=picture if faces else None,
    )
