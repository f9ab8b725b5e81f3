"""Images from folders: one folder an identity, `<identity>/<image>.jpg|png|…`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from pipeline.ahead import cores, map_ahead
from pipeline.name_order import order_of
from pipeline.passed_over import Passed, PassedOver
from pipeline.photos import read_image
from pipeline.records.recordio import RecordError
from tools.sources.folder_names import name_of
from tools.sources.sample import Identity


def read_folders(
    source: Path, passed_over: PassedOver, *, nested: bool = False
) -> Iterator[Identity]:
    """The identities in the order of their folders' names, or of their numbers where all are; the
    images in that of their files' names.

    Folders and files whose names begin with a dot are none. What is no image, or empty, is passed
    over, and so are folders with no image.

    Args:
        nested: the images of folders inside an identity's folder, at any depth, are the identity's;
            else those are passed over.

    Raises:
        RecordError: where no image is found at all.
    """
    entries = [entry for entry in source.iterdir() if not entry.name.startswith(".")]
    folders = [entry for entry in entries if entry.is_dir()]
    if not folders:
        raise RecordError(f"{source} holds no folders: expected one folder of images an identity")
    for entry in sorted(set(entries) - set(folders)):
        passed_over.add(Passed("file beside the identities' folders", str(entry)))
    key = order_of(map(name_of, folders))
    folders.sort(key=lambda folder: key(name_of(folder)))
    found = False
    # Network disks answer many requests at once, so more threads than cores pay.
    read = partial(_read_folder, nested=nested)
    for identity, passed in map_ahead(read, folders, workers=4 * cores()):
        for one in passed:
            passed_over.add(one)
        if identity.images:
            found = True
            yield identity
    if not found:
        raise RecordError(
            f"{source} holds no images in its {len(folders)} folders: expected one folder of "
            f"images an identity. Found {'; '.join(passed_over.lines())}"
        )


def _read_folder(folder: Path, *, nested: bool) -> tuple[Identity, list[Passed]]:
    identity, passed = Identity(name_of(folder), [], []), []
    files = _files(folder, passed, nested=nested)
    for file in files:
        image, reason = read_image(file)
        if reason:
            passed.append(Passed(reason, str(file)))
        else:
            identity.images.append(image)
            identity.places.append(str(file))
    if not identity.images:
        passed.append(Passed("folder without an image" if passed else "empty folder", str(folder)))
    return identity, passed


def _files(folder: Path, passed: list[Passed], *, nested: bool) -> list[Path]:
    """What may be images, by name; those of the folders inside after the folder's own."""
    files, inside = [], []
    for entry in sorted(folder.iterdir()):
        if not entry.name.startswith("."):
            (inside if entry.is_dir() else files).append(entry)
    for one in inside:
        if nested and one.is_symlink():  # it may lead back to where it is
            passed.append(Passed("link to a folder", str(one)))
        elif nested:
            files += _files(one, passed, nested=True)
        else:
            passed.append(Passed("folder inside an identity's, see --nested", str(one)))
    return files
