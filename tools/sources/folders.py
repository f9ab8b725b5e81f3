"""Images from folders: one folder an identity, `<identity>/<image>.jpg|png|…`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.ahead import cores, map_ahead
from pipeline.recordio import RecordError
from tools.sources.sample import Identity, order_of

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}


def read_folders(source: Path) -> Iterator[Identity]:
    """The identities in the order of their folders' names, or of their numbers where all are; the
    images in that of their files' names.

    Folders and files whose names begin with a dot are passed over. Raises RecordError where a
    folder holds no images or an image is empty.
    """
    folders = [f for f in source.iterdir() if f.is_dir() and not f.name.startswith(".")]
    key = order_of(folder.name for folder in folders)
    folders.sort(key=lambda folder: key(folder.name))
    if not folders:
        raise RecordError(f"{source} holds no folders: expected one folder of images an identity")
    # Network disks answer many requests at once, so more threads than cores pay.
    yield from map_ahead(_read_folder, folders, workers=4 * cores())


def _read_folder(folder: Path) -> Identity:
    files = sorted(
        file
        for file in folder.iterdir()
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
    )
    if not files:
        raise RecordError(f"{folder} holds no images ({', '.join(sorted(SUFFIXES))}): remove it")
    images = [file.read_bytes() for file in files]
    for file, image in zip(files, images):
        if not image:
            raise RecordError(f"{file} is empty: remove it")
    return Identity(folder.name, images, [str(file) for file in files])
