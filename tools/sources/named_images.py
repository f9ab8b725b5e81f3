"""Images that a command line names to be embedded: a folder, a list of files, or a .rec."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from evaluation.images import Images, ImagesError, cropped_files, image_files
from evaluation.people.training_images import training_images
from pipeline.named_path import check_path, read_text
from pipeline.photos import CONVERTED, SUFFIXES
from pipeline.records.image_kind import image_size
from pipeline.records.index import open_index
from pipeline.records.recordio import RecordError
from tools.sources.cropping import CropOptions, open_cropper

_LOOKED_AT = 8  # images, for their size


def named_images(source: Path, *, size: int, photos: CropOptions) -> Images:
    """The images of a folder and those inside it by path, of a list in its order, or of a .rec.

    Names of a list begin in the list's folder. Those of a .rec are its records' offsets.

    Args:
        size: pixels that the model takes.
        photos: how faces are cut out of photographs.

    Raises:
        UserError: no images, some that are missing, or all of another size.
    """
    expected = "a folder of images, a list of them (.txt), or a .rec file"
    check_path(source, called=str(source), expected=expected, folder=True)
    if source.suffix == ".rec" or (source / "train.rec").is_file():
        if photos.landmarks or photos.detector:
            raise ImagesError(f"{source} holds crops: leave out --landmarks and --detector")
        return training_images(open_index(source), size=size)
    if source.is_dir():
        names, folder = image_names(source), source
    elif source.suffix in (".txt", ".lst", ".csv", ""):
        names, folder = [line for line in read_text(source).splitlines() if line], source.parent
    else:
        raise ImagesError(f"{source} cannot be read: expected {expected}. Unpack it first")
    if not names:
        raise ImagesError(f"{source} holds no images: expected {expected}")
    return files_of(folder, names, size=size, photos=photos)


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
    digest = hashlib.blake2b(cropper.found_by.path.read_bytes(), digest_size=16).hexdigest()
    cropper = replace(cropper, size=size)
    return cropped_files(paths, names=names, cropper=cropper, known_by=digest)


def _require_size(images: Images, folder: Path) -> None:
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
            f"{folder}: its images are {found} pixels, and the model takes {images.size}×"
            f"{images.size}: let faces be cut out with --detector FILE.onnx or --landmarks CSV"
        )
