"""Pack a folder of identities into a training set:  python tools/pack_rec.py FOLDER OUT

FOLDER holds one folder an identity, `<identity>/<image>.jpg|png|…`; OUT gets train.rec, train.idx
(every record, as MXNet writes it), property and the sidecar, in InsightFace's layout. Identities
are numbered in the order of their names; the bytes of the images are stored as they are.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.progress import track

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.classify import MAX_EXACT_LABEL, scan_rec
from pipeline.index import write_idx, write_sidecar
from pipeline.recordio import PART_HEADER, RecordError, RecordWriter, pack_image

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}


def pack_set(
    folder: Path, identities: Iterable[Sequence[bytes]], *, image_size: int = 112
) -> tuple[int, int]:
    """Write a training set in InsightFace's layout; returns (identities, images) written.

    Args:
        folder: is created; gets train.rec, train.idx, property and the sidecar.
        identities: the encoded images of each identity in turn, numbered from 0.
        image_size: pixels, for the property file.

    Raises:
        RecordError: when `folder` already holds a train.rec, or there is nothing to pack.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rec = folder / "train.rec"
    if rec.exists():
        raise RecordError(f"{rec} exists: name another folder, or remove it first")
    ranges: list[tuple[int, int]] = []  # (first key, key after the last) of each identity
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        unfinished = Path(scratch) / rec.name
        # The header record comes first and speaks of what follows: it is filled in last.
        with RecordWriter(unfinished) as writer:
            offsets = [writer.write(pack_image(b"", [0.0, 0.0], 0))]
            for label, images in enumerate(identities):
                if label >= MAX_EXACT_LABEL:
                    raise RecordError(f"more than {MAX_EXACT_LABEL} identities do not fit float32")
                first = len(offsets)
                for image in images:
                    if not image:
                        raise RecordError(f"an image of identity {label} is empty: remove it")
                    offsets.append(writer.write(pack_image(image, float(label), len(offsets))))
                ranges.append((first, len(offsets)))
            end_of_images = len(offsets)
            for first, last in ranges:
                offsets.append(writer.write(pack_image(b"", [first, last], len(offsets))))
        if end_of_images == 1:
            raise RecordError(f"no images to pack into {rec}")
        with unfinished.open("r+b") as file:
            file.seek(PART_HEADER.size)
            file.write(pack_image(b"", [end_of_images, len(offsets)], 0))
        unfinished.rename(rec)
    write_idx(folder / "train.idx", np.arange(len(offsets)), np.array(offsets))
    (folder / "property").write_text(f"{len(ranges)},{image_size},{image_size}\n")
    write_sidecar(rec, scan_rec(rec), folder)
    return len(ranges), end_of_images - 1


def read_folders(source: Path) -> Iterator[list[bytes]]:
    """The images of each identity folder in the order of the names; RecordError where one is empty.

    Folders and files whose names begin with a dot are passed over.
    """
    folders = sorted(f for f in source.iterdir() if f.is_dir() and not f.name.startswith("."))
    if not folders:
        raise RecordError(f"{source} holds no folders: expected one folder of images an identity")
    for folder in track(folders, description="pack", transient=True):
        files = sorted(
            file
            for file in folder.iterdir()
            if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
        )
        if not files:
            raise RecordError(
                f"{folder} holds no images ({', '.join(sorted(SUFFIXES))}): remove it"
            )
        yield [file.read_bytes() for file in files]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="a folder of identity folders")
    parser.add_argument("output", type=Path, help="folder for train.rec, train.idx and property")
    parser.add_argument("--image-size", type=int, default=112, help="pixels (default 112)")
    arguments = parser.parse_args()
    try:
        identities, images = pack_set(
            arguments.output, read_folders(arguments.source), image_size=arguments.image_size
        )
    except (RecordError, OSError) as error:
        sys.exit(f"pack_rec: {error}")
    print(
        f"packed {images} images of {identities} identities into {arguments.output / 'train.rec'}"
    )


if __name__ == "__main__":
    main()
