"""Encoded images where they lie: in an archive, a database or files, read one by one by place."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from facestream import UserError
from pipeline.containers.texts import Texts
from pipeline.name_order import order_of
from pipeline.named_path import mendable
from pipeline.photos import MOST_BYTES
from pipeline.records.recordio import RecordError
from pipeline.records.scan import Progress

NO_LABEL = -1
BY_FOLDERS = "Paths with a folder for each person, or a .lst with labels, would"


@dataclass(frozen=True)
class Labels:
    """Who is who.

    Attributes:
        numbers: (N,) int64, of each image; NO_LABEL for none.
        names: of the numbers from 0 on; None where the source has numbers alone.
    """

    numbers: np.ndarray
    names: Sequence[str] | None = None


class Spans(NamedTuple):
    """Where N images lie, as in a RECORD: (N,) int64 each; of one that cannot be read, length 0."""

    offset: np.ndarray
    header: np.ndarray
    length: np.ndarray


@dataclass(frozen=True)
class Stored:
    """N encoded images.

    Attributes:
        names: of each, unique.
        read: a place to the encoded image; threads may call it. Raises RecordError where it cannot
            be read.
        known_by: what changes with the images.
        labels: finds out who is who, which may take a while; None where the source does not say.
            Raises UserError for labels that cannot be read.
        spans: finds out where each lies, for a Store; which may take a while. It is given a
            progress.
        would_label: where it does not, what would: a sentence about such a source.
    """

    names: Texts
    read: Callable[[int], bytes]
    known_by: str
    labels: Callable[[], Labels | None]
    spans: Callable[[Progress | None], Spans]
    would_label: str = BY_FOLDERS


def labels_of(identities: Iterable[int | str]) -> Labels | None:
    """Labels as they are where all are numbers; else the places of the names in their order.

    They are the numbers that tools/pack_rec.py gives to the same names. "" is none; where all are
    none, so is what is returned.
    """
    known: dict[int | str, int] = {}
    found = (known.setdefault(identity, len(known)) for identity in identities)
    which = np.fromiter(found, np.int64)
    return labels_by_place(list(known), which)


def labels_by_place(known: Sequence[int | str], which: np.ndarray) -> Labels | None:
    """The same of (N,) int64, each image's identity by its place among all that there are."""
    present = set(known) - {""}
    if not present:
        return None
    if all(isinstance(identity, int) for identity in present):
        numbers = [NO_LABEL if identity == "" else identity for identity in known]
        try:
            return Labels(np.array(numbers, np.int64)[which])
        except OverflowError:
            raise UserError("a label has more than 64 bits: expected smaller numbers") from None
    texts = {str(identity) for identity in present}
    names = [str(name) for name in sorted(texts, key=order_of(texts))]
    place = {name: number for number, name in enumerate(names)} | {"": NO_LABEL}
    return Labels(np.array([place[str(identity)] for identity in known], np.int64)[which], names)


def folder_labels(names: Iterable[str]) -> Labels | None:
    """By the first folder of each path; None where there are no folders."""
    return labels_of(name.partition("/")[0] if "/" in name else "" for name in names)


def archive_labels(names: Sequence[str]) -> Labels | None:
    """Likewise, but a folder that all are in, as where one folder was packed, is nobody's name."""
    outer = _outer(names)
    return folder_labels(name[len(outer) :] for name in names)


def _outer(names: Iterable[str]) -> str:
    """What all paths begin with, as far as each has a folder more: "" or ending in a slash."""
    outer: str | None = None
    for name in names:
        if outer is None:
            outer = name
        while outer and not (name.startswith(outer) and "/" in name[len(outer) :]):
            outer = outer[: outer.rstrip("/").rfind("/") + 1]
    return outer or ""


def state_of(files: Iterable[Path]) -> str:
    """What files are known by: it changes with their names, sizes and times."""
    digest = hashlib.sha256()
    for path in files:
        about = path.stat()
        said = f"{path.name}\0{about.st_size}\0{about.st_mtime_ns}\0"
        digest.update(said.encode(errors="surrogateescape"))
    return digest.hexdigest()


class OpenFiles:
    """Files that stay open and are read by place; threads may share them."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths, self._lock = paths, threading.Lock()
        self._files: dict[int, int] = {}

    def __call__(self, which: int, offset: int, length: int) -> bytes:
        """So many bytes of a file. Raises RecordError where they are too many or not there."""
        if length > MOST_BYTES:
            raise RecordError(f"has {length:,} bytes, more than an image has")
        try:
            content = os.pread(self._file(which), length, offset)
        except OSError as error:
            error.filename = error.filename or str(self._paths[which])  # a failing read names none
            raise RecordError(f"cannot be read: {mendable(error)}") from error
        if len(content) < length:
            raise RecordError(f"is cut off: {self._paths[which].name} ends inside it")
        return content

    def __del__(self) -> None:
        for file in self._files.values():
            os.close(file)

    def _file(self, which: int) -> int:
        with self._lock:
            if which not in self._files:
                self._files[which] = os.open(self._paths[which], os.O_RDONLY | os.O_CLOEXEC)
            return self._files[which]
