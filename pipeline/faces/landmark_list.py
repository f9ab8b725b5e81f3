"""Five landmarks an image, from a text file.

A line is `name,x1,y1,…,x5,y5`, with a score after them or not; commas, semicolons, tabs or spaces
stand between. A header, and a line with the number of lines before it (as CelebA has), are passed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from facestream import UserError
from pipeline.delimited import read_rows
from pipeline.named_path import as_name, as_text, check_path

_COORDINATES = 10
_FARTHEST = 1e6  # pixels
_HEADERS = 2  # lines
_EXPECTED = (
    "expected a name and five points, `name,x1,y1,…,x5,y5`, in pixels from the top left: left eye, "
    "right eye, nose, left and right corner of the mouth, as they lie in the picture"
)


class LandmarkListError(UserError):
    """A list of landmarks that cannot be used: names the line, and how to mend it."""


class LandmarkList:
    """The landmarks of images by their names.

    Args:
        path: the list.
        folder: where the images are; names begin there, or with its own path.

    Attributes:
        names: of the images, as in the list.
        points: (N, 5, 2) float64, (x, y) in pixels, by place in `names`.

    Raises:
        PathError: a file that cannot be opened, or is no text.
        LandmarkListError: a line that is none of a list, an image that has two, coordinates that
            are shares of the image and no pixels, an empty list.
    """

    def __init__(self, path: str | Path, *, folder: str | Path) -> None:
        check_path(path, called=str(path), expected="a list of landmarks, a CSV file")
        self.path = Path(path)
        self._folder = os.path.normpath(folder)
        self._places: dict[str, int] = {}
        self._lines: list[int] = []
        points = []
        for line, fields in _rows(self.path):
            name = self._inside(as_name(fields[0]))
            if name in self._places:
                raise LandmarkListError(
                    f"{path}, line {line}: {fields[0]} again, as in line "
                    f"{self._lines[self._places[name]]}; expected one face an image, keep one line"
                )
            self._places[name] = len(points)
            self._lines.append(line)
            points.append(_numbers(self.path, line, fields[1:]))
        if not points:
            raise LandmarkListError(f"{path} holds no landmarks: {_EXPECTED}")
        self.names = [as_text(name) for name in self._places]
        self.points = np.array(points).reshape(-1, 5, 2)
        if abs(self.points).max() <= 2:
            raise LandmarkListError(
                f"{path}: all coordinates are between {self.points.min():g} and "
                f"{self.points.max():g}: expected pixels, multiply by the images' width and height"
            )
        # A list without folders names images by their file names alone.
        self._flat = not any(os.path.dirname(name) for name in self._places)
        self._taken: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.names)

    def of(self, image: str | Path) -> np.ndarray | None:
        """(5, 2) of the image at this path; None where it has no line.

        Raises LandmarkListError for a second image that the line may mean.
        """
        name = self._inside(os.fspath(image))
        place = self._places.get(name)
        if place is None and self._flat:
            file = os.path.basename(name)
            place = self._places.get(file)
            first = self._taken.setdefault(file, name)
            if place is not None and first != name:
                raise LandmarkListError(
                    f"{self.path}, line {self._lines[place]}: {as_text(file)} may be "
                    f"{as_text(first)} or {as_text(name)}; name images with their folders"
                )
        return None if place is None else self.points[place]

    def without_image(self, images: list[Path]) -> list[str]:
        """The names in the list that are none of these images', each with its line."""
        there = {self._inside(os.fspath(image)) for image in images}
        if self._flat:
            there |= {os.path.basename(name) for name in there}
        return [
            f"{as_text(name)} (line {line})"
            for name, line in zip(self._places, self._lines)
            if name not in there
        ]

    def _inside(self, name: str) -> str:
        """A path from the folder of the images."""
        name = os.path.normpath(name)
        start = "" if self._folder == os.curdir else self._folder + os.sep
        return name[len(start) :] if name.startswith(start) else name


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line, fields) of each line with landmarks."""
    begun = False
    for place, (line, fields) in enumerate(read_rows(path)):
        if begun or place >= _HEADERS or any(_number(field) is not None for field in fields[1:]):
            begun = True
            yield line, fields


def _numbers(path: Path, line: int, fields: list[str]) -> list[float]:
    numbers = [_number(field) for field in fields]
    if len(fields) not in (_COORDINATES, _COORDINATES + 1) or None in numbers:
        wrong = [field for field, number in zip(fields, numbers) if number is None]
        found = f"{wrong[0][:40]!r}" if wrong else f"{len(fields)} numbers"
        raise LandmarkListError(f"{path}, line {line}: found {found}, {_EXPECTED}")
    return [number for number in numbers[:_COORDINATES] if number is not None]


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if abs(number) < _FARTHEST and "_" not in text else None  # no NaN either
