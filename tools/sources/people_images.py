"""Images of people, whoever they are: a folder of them, a .rec or a .bin, for what is fitted."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluation.images import Images
from evaluation.people.training_images import training_images
from evaluation.protocols.pairs import Pairs, open_bin
from pipeline.named_path import check_path
from pipeline.records.index import open_index
from pipeline.records.manifest import read_names
from tools.sources.cropping import CropOptions
from tools.sources.named_images import named_images


@dataclass(frozen=True)
class PeopleImages:
    """N images and whom they show.

    Attributes:
        people: (N,) int64.
        names: of people by their numbers; None where nobody says them.
    """

    images: Images
    people: np.ndarray
    names: Sequence[str] | None


def people_images(source: Path, *, size: int, most: int, seed: int) -> PeopleImages:
    """Images of a folder of people's folders, of a .rec, or of a .bin.

    Those of a .bin that its genuine pairs lead to from one another are of one person.

    Args:
        size: pixels that the model takes.
        most: images: where there are more, all those of some people, who are drawn.
        seed: of the draw.

    Raises:
        UserError: as what reads them does.
    """
    expected = "a folder with a folder for each person, a .rec or a .bin"
    check_path(source, called=f"--fit {source}", expected=expected, folder=True)
    if source.suffix == ".bin":
        found = _of_bin(open_bin(source, image_size=size))
    elif source.suffix == ".rec" or (source / "train.rec").is_file():
        found = _of_rec(source, size)
    else:
        found = _of_folder(source, size)
    return _some(found, most=most, seed=seed)


def _of_folder(source: Path, size: int) -> PeopleImages:
    """A person is a folder in it; an image beside them is a person of its own."""
    images = named_images(source, size=size, photos=CropOptions())
    people = [name.partition("/")[0] for name in images.names]
    names, numbers = np.unique(people, return_inverse=True)
    return PeopleImages(images, numbers, names.tolist())


def _of_rec(source: Path, size: int) -> PeopleImages:
    index = open_index(source)
    labels = index.labels(np.arange(len(index)))
    names = read_names(index.path)
    if names is not None and labels.max(initial=0) >= len(names):
        names = None
    return PeopleImages(training_images(index, size=size), labels, names)


def _of_bin(pairs: Pairs) -> PeopleImages:
    people = np.arange(len(pairs.images))
    for one, other in zip(pairs.first[pairs.same].tolist(), pairs.second[pairs.same].tolist()):
        people[people == people[other]] = people[one]
    return PeopleImages(pairs.images, people, None)


def _some(found: PeopleImages, *, most: int, seed: int) -> PeopleImages:
    if len(found.images) <= most:
        return found
    known, who, counts = np.unique(found.people, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(known))
    taken = order[np.cumsum(counts[order]) <= most]
    places = np.flatnonzero(np.isin(who, taken))
    return PeopleImages(_at(found.images, places), found.people[places], found.names)


def _at(images: Images, places: np.ndarray) -> Images:
    """Those at places (N,) of all of them."""

    def load(wanted: range) -> tuple[np.ndarray, dict[int, str]]:
        loaded = [images.load(range(place, place + 1)) for place in places[wanted].tolist()]
        faults = {at: fault[0] for at, (_, fault) in enumerate(loaded) if fault}
        return np.concatenate([pixels for pixels, _ in loaded]), faults

    known_by = f"{images.fingerprint} {hashlib.sha256(places.tobytes()).hexdigest()}"
    return Images(
        names=[images.names[place] for place in places.tolist()],
        read=lambda place: images.read(int(places[place])),
        load=load,
        size=images.size,
        fingerprint=hashlib.sha256(known_by.encode()).hexdigest(),
    )
