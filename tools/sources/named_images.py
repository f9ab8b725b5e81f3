"""Images that a command line names to be embedded: a folder, a list, a .rec or an archive."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from evaluation.images import (
    Images,
    ImagesError,
    cropped_files,
    image_files,
    stored_faces,
    stored_images,
)
from evaluation.people.training_images import training_images
from facestream import UserError
from pipeline.containers.lmdb_images import stored_lmdb
from pipeline.containers.stored import BY_FOLDERS, Labels, Stored, folder_labels, labels_of
from pipeline.containers.webdataset import stored_webdataset
from pipeline.containers.zip_images import stored_zip
from pipeline.lmdb_file import find_lmdb
from pipeline.named_path import check_path, read_text
from pipeline.photos import CONVERTED, SUFFIXES
from pipeline.records.image_kind import image_size
from pipeline.records.index import open_index
from pipeline.records.manifest import read_names
from pipeline.records.recordio import RecordError
from tools.sources.cropping import CropOptions, open_cropper
from tools.sources.folder_names import on_disk
from tools.sources.lst import parse_line

_LOOKED_AT = 8  # images, for their size
_COMPRESSED = (".gz", ".tgz", ".bz2", ".xz", ".zst")
EXPECTED = (
    "a folder of images, a list of them (.txt, or im2rec's .lst), a .rec file, a .zip, an LMDB, "
    "tars of WebDataset or .parquet files"
)


@dataclass(frozen=True)
class Columns:
    """Which columns of parquet files, or keys in the .json of tars; None where not named."""

    image: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class NamedImages:
    """What a command line names.

    Attributes:
        images: to embed.
        labels: finds out who is who, which may take a while; None where the source does not say.
        parquet: the files, where it is such.
        would_label: as of Stored.
    """

    images: Images
    labels: Callable[[], Labels | None]
    parquet: Sequence[Path] = ()
    would_label: str = BY_FOLDERS


def named_images(source: Path, *, size: int, photos: CropOptions) -> Images:
    """The images alone; see `open_named_images`."""
    return open_named_images(source, size=size, photos=photos).images


def open_named_images(
    source: Path, *, size: int, photos: CropOptions, columns: Columns | None = None
) -> NamedImages:
    """The images of a folder and those inside it by path, of a list in its order, of a .rec or of
    an archive.

    Names of a list begin in the list's folder. Those of a .rec are its records' offsets, those of
    an archive what it calls them. A folder that holds parquet files or tars, and no images, is all
    of these.

    Args:
        size: pixels that the model takes.
        photos: how faces are cut out of photographs.

    Raises:
        UserError: no images, some that are missing, or all of another size; a damaged archive.
    """
    check_path(source, called=str(source), expected=EXPECTED, folder=True)
    columns = columns or Columns()
    if source.suffix == ".rec" or (source / "train.rec").is_file():
        _refuse(source, "image", columns.image)
        _refuse(source, "label", columns.label)
        return _of_rec(source, size=size, photos=photos)
    stored = _stored(source, columns)
    if stored is not None:
        found, parquet = stored
        if not len(found.names):
            raise ImagesError(f"{source} holds no images: expected {EXPECTED}")
        images = _seen(found, source, size, photos)
        return NamedImages(images, found.labels, parquet, found.would_label)
    labels = partial(labels_of, [])  # none
    if source.is_dir():
        names, folder = image_names(source), source
        labels = partial(folder_labels, names)
    elif source.suffix == ".lst":
        names, identities = _of_lst(source)
        folder, labels = source.parent, partial(labels_of, identities)
    elif source.suffix in (".txt", ".csv", ""):
        names, folder = [line for line in read_text(source).splitlines() if line], source.parent
    else:
        hint = "Unpack it first" if source.suffix in _COMPRESSED else "Name one of these"
        raise ImagesError(f"{source} cannot be read: expected {EXPECTED}. {hint}")
    if not names:
        raise ImagesError(f"{source} holds no images: expected {EXPECTED}")
    return NamedImages(files_of(folder, names, size=size, photos=photos), labels)


def image_names(folder: Path) -> list[str]:
    """Paths of the images in a folder and those inside it, from there, in order.

    Links to folders are not followed; what begins with a dot is left out.
    """
    names = []
    for inside, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        start = Path(inside).relative_to(folder)
        names += [
            (start / name).as_posix()
            for name in files
            if not name.startswith(".") and Path(name).suffix.lower() in (*SUFFIXES, *CONVERTED)
        ]
    return sorted(names)


def files_of(folder: Path, names: Sequence[str], *, size: int, photos: CropOptions) -> Images:
    """Images in files, by paths from a folder; photographs are cropped as they are loaded.

    Raises UserError for files that are missing, and where they are all of another size.
    """
    paths = [folder / name for name in names]
    cropper = open_cropper(photos, folder=folder)
    if cropper is None:
        images = image_files(paths, names=names, size=size)
        _require_size(images, folder)
        return images
    cropper = replace(cropper, size=size)
    known_by = _digest(cropper.found_by.path)
    return cropped_files(paths, names=names, cropper=cropper, known_by=known_by)


def _of_lst(source: Path) -> tuple[list[str], list[int]]:
    """The paths and labels of im2rec's list."""
    lines = enumerate(read_text(source).splitlines(), start=1)
    parsed = [parse_line(line, f"{source}, line {number}") for number, line in lines if line]
    return [on_disk(name) for _, name in parsed], [identity for identity, _ in parsed]


def _of_rec(source: Path, *, size: int, photos: CropOptions) -> NamedImages:
    if photos.landmarks or photos.detector:
        raise ImagesError(f"{source} holds crops: leave out --landmarks and --detector")
    index = open_index(source)

    def labels() -> Labels:
        return Labels(index.records["label"].astype(np.int64), read_names(index.path))

    return NamedImages(training_images(index, size=size), labels)


def _stored(source: Path, columns: Columns) -> tuple[Stored, Sequence[Path]] | None:
    """Of an archive, with the files where it is parquet; None for what is none."""
    files = _archives_in(source) if source.is_dir() else [source]
    suffix = files[0].suffix.lower() if files else ""
    if suffix == ".parquet":
        try:
            from pipeline.containers.parquet_images import stored_parquet
        except ImportError as error:
            raise UserError(f"parquet needs pyarrow: pip install pyarrow ({error})") from error
        found = stored_parquet(files, image_column=columns.image, label_column=columns.label)
        return found, files
    _refuse(source, "image", columns.image)
    if suffix == ".tar":
        return stored_webdataset(files, label_key=columns.label), ()
    _refuse(source, "label", columns.label)
    if suffix == ".zip":
        return stored_zip(source), ()
    if (lmdb := find_lmdb(source)) is not None:
        return stored_lmdb(lmdb), ()
    return None


def _archives_in(folder: Path) -> list[Path]:
    """The parquet files or tars of a folder that holds such, and no images."""
    inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    for suffix in (".parquet", ".tar"):
        found = [path for path in inside if path.suffix.lower() == suffix]
        if found and not any(path.suffix.lower() in SUFFIXES for path in inside):
            return found
    return []


def _refuse(source: Path, what: str, column: str | None) -> None:
    if column:
        goes_with = ".parquet files" + (" and tars" if what == "label" else "")
        raise ImagesError(
            f"--{what}-column goes with {goes_with}, and {source} is none: leave it out"
        )


def _seen(found: Stored, source: Path, size: int, photos: CropOptions) -> Images:
    cropper, names = open_cropper(photos, folder=Path()), list(found.names)
    if cropper is None:
        images = stored_images(found.read, names=names, size=size, known_by=found.known_by)
        _require_size(images, source)
        return images
    return stored_faces(
        found.read,
        names=names,
        cropper=replace(cropper, size=size),
        found_by=_digest(cropper.found_by.path),
        known_by=found.known_by,
    )


def _digest(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


def _require_size(images: Images, source: Path) -> None:
    """Images from here and there: where all have another size, they are no crops."""
    sizes = set()
    for place in np.unique(np.linspace(0, len(images) - 1, _LOOKED_AT).astype(int)).tolist():
        try:
            sizes.add(image_size(images.read(place)))
        except RecordError:  # it is counted as damaged later
            continue
    sizes -= {None}
    if sizes and (images.size, images.size) not in sizes:
        found = ", ".join(sorted(f"{width}×{height}" for height, width in sizes))
        raise ImagesError(
            f"{source}: its images are {found} pixels, and the model takes {images.size}×"
            f"{images.size}: let faces be cut out with --detector FILE.onnx or --landmarks CSV"
        )
