"""A folder of identity folders, `<identity>/<image>.jpg|png|…`, trained on as it lies.

Identities are numbered as tools/pack_rec.py numbers them: in the order of their folders' names, or
of their numbers where all are numbers; the images of each are in that of their files' names.
Folders and files whose names begin with a dot are none.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.ahead import cores, map_ahead
from pipeline.containers.content import Content, summarize, to_records
from pipeline.containers.texts import Texts
from pipeline.name_order import order_of
from pipeline.named_path import is_folder, mendable
from pipeline.passed_over import Passed, PassedOver
from pipeline.photos import MOST_BYTES, SUFFIXES
from pipeline.records.image_kind import image_kind
from pipeline.records.recordio import RecordError
from pipeline.records.scan import Progress
from pipeline.records.stalls import Stalls

_SUFFIXES = tuple(suffix.encode() for suffix in SUFFIXES)
_LOOKED_AT = 64  # images, of which the fingerprint has the first 4096 bytes
_FOLDERS = 64  # that a thread takes on at once
_START = 4096  # bytes


class FolderImages:
    """The image files of a folder; a Store (store.py) whose offsets are numbers of images.

    Args:
        path: the folder.
        content: see `scan_folder`.
    """

    def __init__(self, path: Path, content: Content) -> None:
        self.path = path
        self._root, self._paths = os.fsencode(path), content.paths
        self._stalls = Stalls(path)
        self.fingerprint = self._fingerprint(content.records)

    def sources(self, records: np.ndarray) -> list[Callable[[], bytes]]:
        return [
            partial(self._read, self._paths.raw(number), length)
            for number, length in zip(records["offset"].tolist(), records["length"].tolist())
        ]

    def place(self, record: np.void) -> str:
        return f"{self.path / os.fsdecode(self._paths.raw(int(record['offset'])))}: the image"

    def name(self, record: np.void) -> str:
        return os.fsdecode(self._paths.raw(int(record["offset"])))

    def will_need(self, offset: int, length: int) -> None:
        """To open each of so many files ahead of its reading would cost what it is to save."""

    def check_unchanged(self) -> None:
        """A folder's images change one by one, which their reading says; it itself may be gone."""
        try:
            os.stat(self._root)
        except OSError as error:
            raise RecordError(
                f"{self.path} is gone ({mendable(error)}): put it back and start the run again, "
                "which goes on from its newest checkpoint"
            ) from error

    def _read(self, path: bytes, length: int) -> bytes:
        self._stalls.begin(length)
        try:
            # Below Python's own files, which cost as much as the reading.
            file = os.open(self._root + b"/" + path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                content = os.read(file, length + 1)
                while 0 < len(content) < length:  # a network disk may hand out less at a time
                    more = os.read(file, length + 1 - len(content))
                    if not more:
                        break
                    content += more
            finally:
                os.close(file)
        except OSError as error:
            raise RecordError(f"cannot be read: {error.strerror}") from error
        finally:
            self._stalls.end()
        if len(content) != length:
            found = len(content) if len(content) < length else "more"
            raise RecordError(f"was changed: {found} bytes, {length} when it was indexed")
        return content

    def _fingerprint(self, records: np.ndarray) -> str:
        """Of all paths and sizes, and of the first bytes of images from here and there."""
        digest = hashlib.blake2b(str(len(records)).encode(), digest_size=16)
        for table in (records["length"], records["label"], self._paths.content):
            digest.update(np.ascontiguousarray(table))
        for place in np.unique(np.linspace(0, len(records) - 1, _LOOKED_AT).astype(int)).tolist():
            try:
                path = self._paths.raw(place)
                digest.update(self._read(path, int(records["length"][place]))[:_START])
            except RecordError as error:  # its loss is another content, too
                digest.update(str(error).encode())
        return digest.hexdigest()


def folder_state(path: Path) -> str:
    """It changes whenever an identity folder, or a file in one, is added, removed or renamed."""
    root = os.fsencode(path)

    def times(folders: list[bytes]) -> list[int]:
        return [os.stat(root + b"/" + folder).st_mtime_ns for folder in folders]

    digest = hashlib.blake2b(digest_size=16)
    for folders, found in _for_each(times, identity_folders(path)):
        digest.update(b"/".join(folders) + np.array(found, np.int64).tobytes())
    return digest.hexdigest()


def identity_folders(path: Path) -> list[bytes]:
    """The names of the folders in a folder that may be identities', in their order."""
    with os.scandir(os.fsencode(path)) as entries:
        found = [entry.name for entry in entries if entry.name[:1] != b"." and is_folder(entry)]
    key = order_of(map(_text, found))
    return sorted(found, key=lambda name: key(_text(name)))


def scan_folder(path: Path, passed_over: PassedOver, progress: Progress | None = None) -> Content:
    """Find every image file and its size; none is read.

    What is no image by its name, and folders without one, are passed over; an empty image file, or
    one that cannot be looked at, is damage.

    Args:
        progress: is called with (folders done, folders in all).

    Raises:
        RecordError: where no image is found at all.
    """
    root, folders = os.fsencode(path), identity_folders(path)
    names: list[bytes] = []  # of the identities
    paths, lengths, labels = [Texts.of([])], [], []
    damaged: list[tuple[int, int, str]] = []
    images = done = 0

    def look(some: list[bytes]) -> list[_Listed]:
        return [_list(root, folder) for folder in some]

    for some, listed in _for_each(look, folders):
        for folder, found in zip(some, listed):
            for passed in found.passed:
                passed_over.add(passed)
            damaged += [(images, size, why) for size, why in found.damaged]
            if not found.names:
                passed_over.add(Passed("folder without an image", _text(root + b"/" + folder)))
                continue
            paths.append(Texts.of([folder + b"/" + name for name in found.names]))
            lengths.append(np.array(found.sizes, np.int64))
            labels.append(np.full(len(found.sizes), len(names), np.int64))
            names.append(folder)
            images += len(found.names)
        done += len(some)
        if progress:
            progress(done, len(folders))
    if not images:
        raise _without_images(path, folders, passed_over)
    length = np.concatenate(lengths)
    none = np.zeros(images, np.int64)
    records = to_records(np.arange(images), none, length, np.concatenate(labels))
    return Content(records, summarize(records, damaged), Texts.of(names), Texts.joined(paths))


class _Listed(NamedTuple):
    """What is in an identity's folder: image files with their sizes, and what else there is."""

    names: list[bytes]
    sizes: list[int]
    damaged: list[tuple[int, str]]  # (bytes, why)
    passed: list[Passed]


def _list(root: bytes, folder: bytes) -> _Listed:
    inside = root + b"/" + folder
    found: list[tuple[bytes, int]] = []
    damaged: list[tuple[int, str]] = []
    passed: list[Passed] = []
    with os.scandir(inside) as entries:
        for entry in entries:
            name = entry.name
            if name[:1] == b".":
                continue
            suffix = os.path.splitext(name)[1].lower()
            place = folder + b"/" + name
            if suffix not in _SUFFIXES and (suffix or not _is_image(entry)):
                inner = is_folder(entry)
                kind = "folder inside an identity's" if inner else "no image"
                seen = f"{kind} ({_text(suffix)})" if suffix and not inner else kind
                passed.append(Passed(seen, _text(inside + b"/" + name)))
                continue
            try:
                size = entry.stat().st_size if entry.is_file() else -1
            except OSError:
                size = -1
            if 0 < size <= MOST_BYTES:
                found.append((name, size))
            else:
                why = {0: "an empty file", -1: "no file, or a broken link"}.get(size, "too large")
                damaged.append((max(size, 0), f"{_text(place)} is {why}"))
    found.sort()
    return _Listed([name for name, _ in found], [size for _, size in found], damaged, passed)


def _is_image(entry: os.DirEntry[bytes]) -> bool:
    """Of what has no suffix: whether it is a file with an image's first bytes."""
    try:
        if not entry.is_file():  # a pipe would be waited for
            return False
        with open(entry.path, "rb") as file:
            return image_kind(file.read(1 << 16)) != "unknown"
    except OSError:
        return False


def _without_images(path: Path, folders: list[bytes], passed_over: PassedOver) -> RecordError:
    seen = "; ".join(passed_over.lines())
    hint = ""
    if any("folder inside" in reason for reason in passed_over.counts):
        hint = f". If the identities are a level deeper, name that: {path / _text(folders[0])}"
    return RecordError(
        f"{path} holds no images in its {len(folders)} folders: expected one folder of images an "
        f"identity. Found {seen}{hint}"
    )


def _for_each(
    function: Callable[[list[bytes]], list], folders: list[bytes]
) -> Iterator[tuple[list[bytes], list]]:
    """Some folders at a time and what the function makes of them, in order."""
    rest = iter(folders)
    pieces = list(iter(lambda: list(islice(rest, _FOLDERS)), []))
    # Network disks answer many requests at once, so more threads than cores pay.
    return zip(pieces, map_ahead(function, pieces, workers=4 * cores()))


def _text(name: bytes) -> str:
    """UTF-8 text, whatever the locale; other bytes stay Python's surrogates."""
    return name.decode(errors="surrogateescape")
