"""Many images: a contact sheet to look at, and pairs to verify faces on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from facestream import UserError
from synthetic.camera import render
from synthetic.people import PAIR_STREAM, word

FOLDS = 10  # as LFW's protocol has them
BORDER = 2  # white pixels around each image of a sheet


def contact_sheet(
    identities: Sequence[int], images_per_identity: int, *, seed: int = 0, size: int = 112
) -> np.ndarray:
    """A grid, one identity a row, its images 0, 1, 2 … from left to right: (H, W, 3) uint8 RGB.

    Each image is size × size pixels.

    UserError if there is nothing to show.
    """
    if len(identities) == 0 or images_per_identity < 1:
        raise UserError(
            f"a sheet of {len(identities)} identities by {images_per_identity} images is empty; "
            "ask for at least one of each"
        )
    rows = [
        [render(who, k, seed=seed, size=size) for k in range(images_per_identity)]
        for who in identities
    ]
    margins = ((0, 0), (0, 0), (BORDER, BORDER), (BORDER, BORDER), (0, 0))
    tiles = np.pad(np.array(rows), margins, constant_values=255)
    return np.concatenate(np.concatenate(tiles, axis=1), axis=1)


def make_pairs(
    identities: Sequence[int], *, pairs: int, seed: int
) -> tuple[list[tuple[int, int]], np.ndarray]:
    """Verification pairs: 2·pairs (identity, image) and a (pairs,) bool, True where they match.

    Images 2k and 2k + 1 of the list are pair k. Genuine and impostor pairs take turns, so the ten
    contiguous folds of the LFW protocol are each half and half. An image's number is its place in
    the list: none is used twice.

    UserError if pairs is not a positive multiple of 20, or there are not two distinct identities,
    or one is listed twice.
    """
    if pairs < 1 or pairs % (2 * FOLDS):
        raise UserError(
            f"pairs is {pairs}; give a positive multiple of {2 * FOLDS}, so that each of "
            f"{FOLDS} folds has as many genuine as impostor pairs"
        )
    people = [word("identity", who) for who in identities]
    if len(people) < 2 or len(set(people)) < len(people):
        raise UserError(
            f"{len(people)} identities, {len(set(people))} of them distinct; "
            "give two or more, each once"
        )
    rng = np.random.default_rng([PAIR_STREAM, word("seed", seed)])
    genuine = np.arange(pairs) % 2 == 0
    first = rng.integers(len(people), size=pairs)
    stranger = (first + rng.integers(1, len(people), size=pairs)) % len(people)
    second = np.where(genuine, first, stranger)
    places = np.stack([first, second], axis=1).ravel().tolist()  # (2·pairs,)
    return [(people[place], image) for image, place in enumerate(places)], genuine
