"""What the readers of the sources hand on, and the way from samples in any order to identities."""

from __future__ import annotations

import mmap
from array import array
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.containers.sample import Sample
from pipeline.name_order import order_of
from pipeline.passed_over import Passed, PassedOver
from pipeline.records.recordio import RecordError


class Identity(NamedTuple):
    """All images of one identity."""

    name: str
    images: list[bytes]  # encoded
    places: list[str]  # where each one is from, for messages


def group(samples: Iterable[Sample], scratch: Path, passed_over: PassedOver) -> Iterator[Identity]:
    """Bring samples together by identity, in the order of `order_of`.

    The images of an identity keep their order. They pass through a file in the folder `scratch`,
    for they may be more than the memory holds: it needs the room of the whole set for a while.
    Samples whose image is empty are passed over, and those without an identity.

    Raises RecordError where an identity is given as a number and as text.
    """
    number_of: dict[int | str, int] = {}  # identity to the order of its appearance
    owner, ends = array("q"), array("q", [0])  # a sample's identity; ends of its place and image
    with open(scratch / "samples", "wb+") as file:
        for identity, image, place in samples:
            if identity == "" or not image:
                what = "empty image" if not image else "without an identity"
                passed_over.add(Passed(what, place))
                continue
            owner.append(number_of.setdefault(identity, len(number_of)))
            for piece in (place.encode(errors="surrogateescape"), image):
                file.write(piece)
                ends.append(ends[-1] + len(piece))
        if not owner:
            return
        file.flush()
        # Private, as some network disks refuse shared maps.
        flags, prot = mmap.MAP_PRIVATE, mmap.PROT_READ
        with mmap.mmap(file.fileno(), 0, flags=flags, prot=prot) as content:
            yield from _identities(content, number_of, np.array(owner), np.array(ends))


def _identities(
    content: mmap.mmap, number_of: dict[int | str, int], owner: np.ndarray, ends: np.ndarray
) -> Iterator[Identity]:
    names = sorted(number_of, key=order_of(number_of))
    for one, other in pairwise(names):
        if str(one) == str(other):
            raise RecordError(
                f"the identity {one} appears as a number and as text: write all as text"
            )
    order = np.argsort(owner, kind="stable")
    first = np.searchsorted(owner[order], np.arange(len(names) + 1))
    for name in names:
        number = number_of[name]
        mine = order[first[number] : first[number + 1]]
        places = [content[ends[2 * i] : ends[2 * i + 1]] for i in mine]
        images = [content[ends[2 * i + 1] : ends[2 * i + 2]] for i in mine]
        yield Identity(
            str(name), images, [place.decode(errors="surrogateescape") for place in places]
        )
