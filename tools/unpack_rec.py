"""Unpack a .rec into a folder an identity:  python tools/unpack_rec.py train.rec OUT

OUT gets `<identity>/<number>.jpg|png|…`, the bytes as they are stored. Identities are named as in
the manifest that pack_rec.py wrote beside the .rec, else by their labels; a name that is no name
for a folder is escaped, so none leads out of OUT. `pack_rec.py OUT` packs the same set again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.ahead import cores, map_ahead
from pipeline.records.image_kind import EXTENSIONS, image_kind
from pipeline.records.index import open_index
from pipeline.records.manifest import read_names
from pipeline.records.recordio import RecordError
from tools.sources.folder_names import folder_name, on_disk
from training.command import command


def unpack(rec: Path, folder: Path) -> tuple[int, int]:
    """Write the images of `rec` into `folder`; returns (identities, images) written.

    Raises RecordError when `folder` holds anything already, when two names would share a folder
    (on a file system that ignores case), and as `open_index` does. Of a damaged file what is intact
    is unpacked.
    """
    index = open_index(rec)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RecordError(f"{folder} is not an empty folder: name another one")
    names = read_names(index.path) or []
    labels = index.records["label"]
    order = np.argsort(labels, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1) if len(order) else []

    def write(images: np.ndarray) -> None:
        label = int(labels[images[0]])
        # Labels of one width sort as numbers do, so packing again gives the same numbers.
        name = names[label] if label < len(names) else f"{label:08d}"
        own = folder / on_disk(folder_name(name))
        try:
            own.mkdir(parents=True)
        except FileExistsError:
            raise RecordError(
                f"identity {label}, {name!r}: {own} is another one's already"
            ) from None
        for number, i in enumerate(images):
            image = index.image(i).tobytes()
            extension = EXTENSIONS.get(image_kind(image), ".jpg")
            (own / f"{number:06d}{extension}").write_bytes(image)

    # Network disks take many files at once, so more threads than cores pay.
    written = map_ahead(write, groups, workers=4 * cores())
    unseen = not sys.stdout.isatty()  # where a bar would leave an empty line
    bar: dict[str, Any] = {
        "description": "unpack",
        "total": len(groups),
        "transient": True,
        "disable": unseen,
    }
    for _ in track(written, **bar):
        pass
    return len(groups), len(index)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rec", type=Path, help="a .rec file, or the folder of its train.rec")
    parser.add_argument("output", type=Path, help="a new or empty folder")
    arguments = parser.parse_args()
    with command("unpack_rec"):
        identities, images = unpack(arguments.rec, arguments.output)
    print(f"unpacked {images} images of {identities} identities into {arguments.output}")


if __name__ == "__main__":
    main()
