"""IJB-B and IJB-C as InsightFace hands them out, read and checked before anything is embedded.

Under a folder, with `ijbb` for IJB-B:

    loose_crop/                         the images
    meta/ijbc_face_tid_mid.txt          `1.jpg 1 69544`: image, template, medium; a line an image
    meta/ijbc_name_5pts_score.txt       `1.jpg x1 y1 … x5 y5 0.99`: five landmarks and the face
                                        detector's score, in the same order
    meta/ijbc_template_pair_label.txt   `1 11065 1`: two templates, and 1 where both are one subject
    meta/ijbc_1N_gallery_G1.csv, G2     templates and subjects of the two galleries; S1, S2 of IJB-B
    meta/ijbc_1N_probe_mixed.csv        those of the probes

The last three may be missing: then there is no 1:N, and who is who is not known.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
import re
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np

from evaluation.protocols.templates import Members
from facestream import UserError
from pipeline.named_path import as_name, check_path, read_text

_BLOCK = 1 << 20  # lines of pairs at a time
_PAIR = "two templates, and 1 (one subject) or 0, as in `1 11065 1`"
_THREE_NUMBERS = re.compile(r"\s*-?[0-9]{1,18}\s+-?[0-9]{1,18}\s+[01]\s*")
_AGAIN = "Download the meta files again, or make them in that form"


class IjbFilesError(UserError):
    """Files that are not those of IJB: names file and line, what was expected, how to mend it."""


@dataclass(frozen=True)
class TemplatePairs:
    """P pairs: first, second (P,) int32, places among the templates; same (P,) bool."""

    first: np.ndarray
    second: np.ndarray
    same: np.ndarray


@dataclass(frozen=True)
class OneToMany:
    """Who is searched for, and where: places among the templates, int64.

    Attributes:
        galleries: two; no subject is in both.
        probes: (Q,) templates, each to be searched for in either gallery.
    """

    galleries: tuple[np.ndarray, np.ndarray]
    probes: np.ndarray


@dataclass(frozen=True)
class IjbFiles:
    """What is in the files.

    Attributes:
        paths, names: of the N images.
        landmarks: (N, 5, 2) float32, in pixels.
        detector: (N,) float32, the face detector's score.
        templates: (T,) int64, their numbers in the files, rising.
        members: of the templates.
        pairs: of templates, 1:1.
        subjects: (T,) int64, their numbers in the files; -1 where they are not known.
        one_to_many: None without its files.
    """

    paths: list[Path]
    names: list[str]
    landmarks: np.ndarray
    detector: np.ndarray
    templates: np.ndarray
    members: Members
    pairs: TemplatePairs
    subjects: np.ndarray
    one_to_many: OneToMany | None


def read_ijb_files(folder: str | Path, *, name: str) -> IjbFiles:
    """Read and check all of them.

    Args:
        folder: the one with meta/ and loose_crop/ in it, or the one above, with IJBB/ or IJBC/.
        name: "ijbb" or "ijbc".

    Raises:
        PathError: a file or folder that is missing or cannot be opened.
        IjbFilesError: a line that is none of its file, files that do not fit each other.
    """
    folder = Path(folder)
    if not (folder / "meta").exists() and (folder / name.upper()).exists():
        folder /= name.upper()
    meta = folder / "meta"
    for path in (folder, meta):
        expected = f"the folder of {name.upper()} with meta/ and loose_crop/ in it"
        check_path(path, called=str(path), expected=expected, file=False, folder=True)
    listed, named = meta / f"{name}_face_tid_mid.txt", meta / f"{name}_name_5pts_score.txt"
    faces = list(_lines(listed, 3, "`1.jpg 1 69544` (image, template, medium)", _membership))
    shapes = list(_lines(named, 12, "`1.jpg`, ten coordinates and a score", _landmarks))
    _check_same_order(listed, [face[0] for face in faces], named, [shape[0] for shape in shapes])
    names, image, landmarks, detector = _images_once(named, shapes)
    templates, template = np.unique([face[1] for face in faces], return_inverse=True)
    paths = [folder / "loose_crop" / as_name(image_name) for image_name in names]
    pairs = _read_pairs(meta / f"{name}_template_pair_label.txt", templates, listed)
    one_to_many, subjects = _read_one_to_many(meta, name, templates, listed)
    medium = np.array([face[2] for face in faces], np.int64)
    return IjbFiles(
        paths,
        names,
        landmarks,
        detector,
        templates,
        Members(image, template.reshape(-1), medium),
        pairs,
        subjects,
        one_to_many,
    )


def _lines(path: Path, count: int, expected: str, parse: Callable) -> Iterator[tuple]:
    """What `parse` makes of the fields of each line."""
    check_path(path, called=str(path), expected=f"lines of {expected}")
    number = 0
    text = io.StringIO(read_text(path))
    for number, line in enumerate(text, start=1):
        fields = line.split()
        if not fields:
            continue
        try:
            if len(fields) != count:
                raise ValueError(f"{len(fields)} fields for {count}")
            yield parse(fields)
        except ValueError as error:
            raise IjbFilesError(
                f"{path}, line {number}: found {line.strip()[:120]!r} ({error}), expected "
                f"{expected}. {_AGAIN}"
            ) from None
    if not number:
        raise IjbFilesError(f"{path} is empty: expected lines of {expected}. {_AGAIN}")


def _membership(fields: list[str]) -> tuple[str, int, int]:
    return fields[0], int(fields[1]), int(fields[2])


def _landmarks(fields: list[str]) -> tuple[str, array[float]]:
    path = PurePath(fields[0])
    if path.is_absolute() or ".." in path.parts:
        raise ValueError("a path out of the folder of images")
    values = array("f", map(float, fields[1:]))
    if not all(map(math.isfinite, values)):
        raise ValueError("a number that is not finite")
    return fields[0], values


def _check_same_order(listed: Path, faces: list[str], named: Path, shapes: list[str]) -> None:
    if len(faces) != len(shapes):
        raise IjbFilesError(
            f"{listed} has {len(faces):,} images and {named} has {len(shapes):,}; expected the "
            f"same images in the same order. {_AGAIN}"
        )
    for number, (face, shape) in enumerate(zip(faces, shapes), start=1):
        if face != shape:
            raise IjbFilesError(
                f"image {number} is {face} in {listed} and {shape} in {named}; expected the same "
                f"images in the same order. {_AGAIN}"
            )


def _images_once(
    path: Path, shapes: list[tuple[str, array[float]]]
) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
    """Names of the images, the image of each line, landmarks and detector scores of the images."""
    places: dict[str, int] = {}
    image = np.array([places.setdefault(name, len(places)) for name, _ in shapes], np.int64)
    values = np.frombuffer(b"".join(values.tobytes() for _, values in shapes), np.float32)
    values = values.reshape(-1, 11)
    first = np.unique(image, return_index=True)[1]
    differing = np.flatnonzero((values != values[first][image]).any(axis=1))
    if len(differing):
        raise IjbFilesError(
            f"{path}: {shapes[differing[0]][0]} stands twice, with other landmarks or another "
            "score; expected one face an image: copy the image under another name"
        )
    images = values[first]
    return list(places), image, images[:, :10].reshape(-1, 5, 2), images[:, 10]


def _read_pairs(path: Path, templates: np.ndarray, listed: Path) -> TemplatePairs:
    """They are millions: read in blocks, and looked at line by line only where one is wrong."""
    check_path(path, called=str(path), expected=f"lines of {_PAIR}")
    blocks = []
    with path.open(encoding="utf-8", errors="replace") as file:
        for start in itertools.count(1, _BLOCK):
            lines = list(itertools.islice(file, _BLOCK))
            if not lines:
                break
            rows = _rows_of_pairs(path, lines, start)
            places = np.searchsorted(templates, rows[:, :2]).clip(max=len(templates) - 1)
            for row, side in np.argwhere(templates[places] != rows[:, :2])[:1]:
                _refuse(path, lines, start, row, f"{rows[row, side]} has no image in {listed}")
            blocks.append((places.astype(np.int32), rows[:, 2] == 1))
    if not blocks:
        raise IjbFilesError(f"{path} is empty: expected lines of {_PAIR}. {_AGAIN}")
    places, same = (np.concatenate(part) for part in zip(*blocks))
    if not same.any() or same.all():
        kind = "impostor" if same.any() else "genuine"
        raise IjbFilesError(f"{path} holds no {kind} pair: expected lines of {_PAIR}. {_AGAIN}")
    return TemplatePairs(places[:, 0].copy(), places[:, 1].copy(), same)


def _rows_of_pairs(path: Path, lines: list[str], start: int) -> np.ndarray:
    """(lines, 3) int64; empty lines are none."""
    if not any(map(str.strip, lines)):
        return np.empty((0, 3), np.int64)
    try:
        rows = np.loadtxt(lines, np.int64, comments=None, ndmin=2)
        wrong = (
            np.flatnonzero((rows[:, 2:] != 0) & (rows[:, 2:] != 1)) if rows.shape[1] == 3 else [0]
        )
    except ValueError:
        written = [line for line in lines if line.strip()]
        wrong = [row for row, line in enumerate(written) if not _THREE_NUMBERS.fullmatch(line)]
        assert wrong, path
    for row in wrong[:1]:
        _refuse(path, lines, start, row, "not of that form")
    return rows


def _refuse(path: Path, lines: list[str], start: int, row: int, reason: str) -> None:
    """Raise for a line, the row-th of those that are not empty."""
    place = [i for i, line in enumerate(lines) if line.strip()][row]
    raise IjbFilesError(
        f"{path}, line {start + place}: found {lines[place].strip()[:80]!r} ({reason}), expected "
        f"{_PAIR}. {_AGAIN}"
    )


def _read_one_to_many(
    meta: Path, name: str, templates: np.ndarray, listed: Path
) -> tuple[OneToMany | None, np.ndarray]:
    """With (T,) subjects, -1 where they are not known."""
    subjects = np.full(len(templates), -1, np.int64)
    gallery, probe = f"{name}_1N_gallery_{{}}.csv", f"{name}_1N_probe_mixed.csv"
    letter = "S" if (meta / gallery.format("S1")).exists() else "G"
    paths = [meta / gallery.format(f"{letter}{i}") for i in (1, 2)] + [meta / probe]
    if not any(path.exists() for path in paths):
        return None, subjects
    parts = []
    for path in paths:
        check_path(path, called=str(path), expected="one of the three lists of 1:N")
        numbers, of_whom = _read_template_subjects(path)
        places = np.searchsorted(templates, numbers).clip(max=len(templates) - 1)
        for unknown in numbers[templates[places] != numbers][:1]:
            raise IjbFilesError(f"{path}: template {unknown} has no image in {listed}. {_AGAIN}")
        differing = (subjects[places] >= 0) & (subjects[places] != of_whom)
        for row in np.flatnonzero(differing)[:1]:
            raise IjbFilesError(
                f"{path}: template {numbers[row]} is of subject {of_whom[row]}, and of "
                f"{subjects[places[row]]} in a list before; expected one subject. {_AGAIN}"
            )
        subjects[places] = of_whom
        parts.append(places)
    first, second, probes = parts
    for path, enrolled in zip(paths, (first, second)):
        if not np.isin(subjects[probes], subjects[enrolled]).any():
            raise IjbFilesError(
                f"{paths[2]}: of no probe the subject is in the gallery {path}; expected probes of "
                f"its subjects. {_AGAIN}"
            )
    return OneToMany((first, second), probes), subjects


def _read_template_subjects(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The templates of a list, each once in order of appearance, and their subjects."""
    found: dict[int, int] = {}
    rows = csv.reader(read_text(path).splitlines())
    head = [field.strip().upper() for field in next(rows, [])]
    if not {"TEMPLATE_ID", "SUBJECT_ID"} <= set(head):
        raise IjbFilesError(
            f"{path}, line 1: found {','.join(head)[:120]!r}, expected a head with TEMPLATE_ID and "
            f"SUBJECT_ID. {_AGAIN}"
        )
    columns = head.index("TEMPLATE_ID"), head.index("SUBJECT_ID")
    try:
        for row in rows:
            if row:
                template, subject = (int(row[column]) for column in columns)
                if subject < 0:
                    raise ValueError("a subject below 0")
                if found.setdefault(template, subject) != subject:
                    raise ValueError(f"template {template} was of subject {found[template]} before")
    except (ValueError, IndexError, csv.Error) as error:
        raise IjbFilesError(
            f"{path}, line {rows.line_num}: expected whole numbers as TEMPLATE_ID and SUBJECT_ID, "
            f"one subject a template ({error}). {_AGAIN}"
        ) from None
    if not found:
        raise IjbFilesError(f"{path} holds no template: expected at least one. {_AGAIN}")
    return np.array(list(found), np.int64), np.array(list(found.values()), np.int64)
