"""A person looked for in training sets: by name, by label, or by a photo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluation.features import Embedder, Features, extract
from evaluation.people.training_images import training_images
from evaluation.protocols.protocol import unit_rows
from facestream import UserError
from pipeline.named_path import check_path
from pipeline.records.index import RecordIndex, open_index
from pipeline.records.manifest import read_names
from tools.sources.cropping import CropOptions
from tools.sources.named_images import files_of, image_names, named_images

LABEL = "label:"
_SIMILAR = 5  # names that an error lists


@dataclass(frozen=True)
class TrainingSet:
    """A .rec, or a folder with a folder for each person.

    Attributes:
        path: as it was named, or its train.rec.
        index: of a .rec; None for a folder.
        names: of people: by label in a .rec, where its manifest has them.
    """

    path: Path
    index: RecordIndex | None
    names: Sequence[str]

    @property
    def name(self) -> str:
        """As cards and results call it."""
        return self.path.parent.name if self.path.name == "train.rec" else self.path.name


@dataclass(frozen=True)
class Found:
    """A person in a set.

    Attributes:
        label: in a .rec; -1 in a folder.
        name: where it is known.
        images: how many.
    """

    set: TrainingSet
    label: int
    name: str
    images: int

    def __str__(self) -> str:
        label = f"label {self.label}" if self.label >= 0 else ""
        named = ", ".join(filter(None, [label, self.name and f"named {self.name}"]))
        return f"{self.set.path}: {named}, {self.images} images"


def open_training_set(path: Path) -> TrainingSet:
    """Raises UserError for what is neither a .rec nor a folder of people."""
    expected = "a .rec, a folder that holds train.rec, or one with a folder for each person"
    check_path(path, called=f"--data {path}", expected=expected, folder=True)
    if path.is_file() or (path / "train.rec").is_file():
        index = open_index(path)
        return TrainingSet(index.path, index, read_names(index.path) or [])
    people = sorted(one.name for one in path.iterdir() if one.is_dir())
    if not people:
        raise UserError(f"--data {path} has no folders in it: expected {expected}")
    return TrainingSet(path, None, people)


def find_person(person: str, sets: Sequence[TrainingSet]) -> list[Found]:
    """Wherever a person is.

    Args:
        person: a name, as a manifest or a folder has it; or "label:17", of a .rec.

    Raises:
        UserError: in none of the sets, or a label where there are several.
    """
    found = [one for among in sets for one in _in_set(person, among)]
    if found:
        return found
    known = sorted({name for among in sets for name in among.names})
    near = [name for name in known if person.lower() in name.lower()][:_SIMILAR]
    hint = f"Names like it: {', '.join(near)}" if near else "No name is like it"
    if not known:
        hint = "None of the sets says who is who: train.json, the manifest, does"
    raise UserError(
        f"{person!r} is in none of {', '.join(str(one.path) for one in sets)}. {hint}. Give a "
        f"name, {LABEL}NUMBER, or a photo: --photo FILE --model MODEL"
    )


def _in_set(person: str, among: TrainingSet) -> list[Found]:
    number = person.removeprefix(LABEL)
    if person.startswith(LABEL) and not (number.isascii() and number.isdigit()):
        raise UserError(f"{person}: expected a number after {LABEL}, such as {LABEL}17")
    if among.index is None:
        if person not in among.names:
            return []
        return [Found(among, -1, person, len(image_names(among.path / person)))]
    labels = [place for place, name in enumerate(among.names) if name == person]
    if person.startswith(LABEL):
        labels = [int(number)]
    counts = [int((among.index.records["label"] == label).sum()) for label in labels]
    names = [among.names[label] if label < len(among.names) else "" for label in labels]
    return [
        Found(among, label, name, count)
        for label, name, count in zip(labels, names, counts)
        if count
    ]


def nearest_people(
    photo: Path, sets: Sequence[TrainingSet], embedder: Embedder, *, photos: CropOptions, top: int
) -> list[tuple[float, Found]]:
    """The people whose images are most like a photo: the cosine of the best image, and who.

    Every image of the sets is embedded, and nothing of it is kept.

    Raises UserError for images that cannot be embedded.
    """
    size = embedder.image_size
    image = files_of(photo.parent, [photo.name], size=size, photos=photos)
    wanted = extract(embedder, image)
    assert wanted is not None, "there is one rank"
    (face,) = unit_rows(wanted.embeddings)
    found: list[tuple[float, Found]] = []
    for among in sets:
        names = among.names
        if among.index is None:
            images = named_images(among.path, size=size, photos=photos)
            numbers = {name: number for number, name in enumerate(names)}
            people = np.array([numbers.get(name.partition("/")[0], -1) for name in images.names])
        else:
            images = training_images(among.index, size=size)
            people = among.index.records["label"].astype(np.int64)
        features = extract(embedder, images, skip_damaged=True, progress=among.name)
        assert features is not None, "there is one rank"
        for number, cosine in _best(features, face, people, top=top):
            label = -1 if among.index is None else number
            name = names[number] if number < len(names) else ""
            count = int((people == number).sum())
            found.append((cosine, Found(among, label, name, count)))
    return sorted(found, key=lambda one: -one[0])[:top]


def _best(
    features: Features, face: np.ndarray, people: np.ndarray, *, top: int
) -> list[tuple[int, float]]:
    """The people of the images that are nearest, each once."""
    cosines = unit_rows(np.asarray(features.embeddings)) @ face
    best: dict[int, float] = {}
    for place in np.argsort(-cosines, kind="stable").tolist():
        if people[place] >= 0:  # an image beside the folders is nobody's
            best.setdefault(int(people[place]), float(cosines[place]))
        if len(best) == top:
            break
    return list(best.items())
