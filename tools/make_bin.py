"""Pack pairs of faces into a verification set:  python tools/make_bin.py PAIRS FOLDER -o SET.bin

PAIRS is a list over the images in FOLDER: LFW's pairs.txt, XQLFW's, or a CSV file of two paths and
1 (same person) or 0. With --pairs-from FOLDER the pairs are drawn from a folder of people's
folders, half genuine, half impostor. SET.bin is InsightFace's format, the images as they are. With
--unpack SET.bin -o FOLDER the images of a set come back as files, with the list of its pairs,
pairs.csv.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.progress import track

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluation.pair_set import read_bin, write_bin
from evaluation.protocols.draw_pairs import draw_pairs
from evaluation.protocols.pair_lists import PairList, read_pair_list
from facestream import UserError
from pipeline.ahead import cores, map_ahead
from pipeline.photos import read_image
from pipeline.records.image_kind import EXTENSIONS, image_kind, image_size
from pipeline.whole_file import write_whole
from training.command import command, whole_number

LIST = "pairs.csv"
_SHOWN = 3


def pack_pairs(pairs: PairList, output: Path) -> str:
    """Write the pairs, in the order of their folds where they have any; returns what was written.

    Raises UserError for images that cannot be read or are not all square and of one size, and where
    `output` exists.
    """
    if output.exists():
        raise UserError(f"{output} exists: name another file, or remove it first")
    images = _read(pairs.images)
    order = range(len(pairs.same)) if pairs.fold is None else np.argsort(pairs.fold, kind="stable")
    # A pickle holds an image of several pairs once.
    both = [images[place[i]] for i in order for place in (pairs.first, pairs.second)]
    write_bin(output, both, pairs.same[list(order)].tolist())
    genuine = int(pairs.same.sum())
    people = f", {len(set(pairs.people))} people" if pairs.people else ""
    return (
        f"{len(pairs.same)} pairs, {genuine} genuine and {len(pairs.same) - genuine} impostor, of "
        f"{len(images)} images{people}"
    )


def unpack(path: Path, folder: Path) -> tuple[int, int]:
    """Write the images of a .bin file, each once, and the list of pairs; returns (pairs, images).

    Raises UserError where `folder` holds anything already, PairSetError as `read_bin` does.
    """
    pairs = read_bin(path)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not an empty folder: name another one")
    folder.mkdir(parents=True, exist_ok=True)
    names: dict[bytes, str] = {}
    for image in pairs.images:
        if image not in names:
            names[image] = f"{len(names):06d}{EXTENSIONS.get(image_kind(image), '.jpg')}"
            (folder / names[image]).write_bytes(image)
    rows = io.StringIO()
    writer = csv.writer(rows, lineterminator="\n")
    writer.writerow(("first", "second", "same"))
    for first, second, same in zip(pairs.images[::2], pairs.images[1::2], pairs.same):
        writer.writerow((names[first], names[second], int(same)))
    write_whole(folder / LIST, rows.getvalue())
    return len(pairs.same), len(names)


def _read(paths: Sequence[Path]) -> list[bytes]:
    unseen = not sys.stdout.isatty()  # where a bar would leave an empty line
    # Network disks answer many requests at once, so more threads than cores pay.
    contents = track(
        map_ahead(read_image, paths, workers=4 * cores()),
        "read",
        total=len(paths),
        transient=True,
        disable=unseen,
    )
    images, faults, sizes = [], [], Counter[tuple[int, int]]()
    for path, (image, reason) in zip(paths, contents):
        size = None if reason else image_size(image)
        if size is None:
            faults.append(f"{path} ({reason or 'no image that can be read'})")
        else:
            images.append(image)
            sizes[size] += 1
    if faults:
        shown = ", ".join(faults[:_SHOWN]) + (", …" if len(faults) > _SHOWN else "")
        raise UserError(
            f"{len(faults)} of {len(paths)} images cannot be packed: {shown}. Mend them, or remove "
            "their pairs"
        )
    if len(sizes) > 1 or any(height != width for height, width in sizes):
        shown = ", ".join(f"{n} of {w} x {h}" for (h, w), n in sizes.most_common(_SHOWN))
        raise UserError(
            f"the images are no crops of one size: {shown} pixels. Expected square ones of one "
            "size, aligned: tools/align.py makes them"
        )
    return images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", type=Path, nargs="?", help="a list of pairs")
    parser.add_argument("folder", type=Path, nargs="?", help="where its images are")
    parser.add_argument("-o", "--output", type=Path, required=True, help="a new .bin, or folder")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--pairs-from", type=Path, metavar="FOLDER", help="draw pairs of a folder of people"
    )
    instead.add_argument("--unpack", type=Path, metavar="SET.bin", help="a set into a folder")
    many = whole_number(2, 10**7)
    parser.add_argument("--most", type=many, metavar="N", help="pairs to draw (default 6000)")
    parser.add_argument(
        "--per-person",
        type=whole_number(1, 10**6),
        metavar="N",
        help="genuine pairs of a person at most (default 50)",
    )
    parser.add_argument(
        "--seed", type=whole_number(0, 2**32 - 1), help="of what is drawn (default 0)"
    )
    arguments = parser.parse_args()
    with command("make_bin"):
        _check_together(arguments)
        if arguments.unpack:
            pairs, images = unpack(arguments.unpack, arguments.output)
            done = f"unpacked {pairs} pairs of {images} images into {arguments.output}, see {LIST}"
        else:
            drawn = {"pairs": arguments.most, "per_person": arguments.per_person}
            drawn = {"seed": arguments.seed} | drawn
            chosen = (
                draw_pairs(
                    arguments.pairs_from,
                    **{name: value for name, value in drawn.items() if value is not None},
                )
                if arguments.pairs_from
                else read_pair_list(arguments.pairs, arguments.folder)
            )
            done = f"wrote {arguments.output}: {pack_pairs(chosen, arguments.output)}"
    print(done)


def _check_together(arguments: argparse.Namespace) -> None:
    """Raise UserError for arguments that do not go together."""
    instead = arguments.pairs_from or arguments.unpack
    if instead and arguments.pairs:
        raise UserError(f"{arguments.pairs} is given beside {instead}: leave one out")
    if not instead and not (arguments.pairs and arguments.folder):
        raise UserError(
            "give a list of pairs and the folder of its images, or --pairs-from FOLDER, or "
            "--unpack SET.bin"
        )
    if not arguments.pairs_from:
        for name in ("most", "per_person", "seed"):
            if getattr(arguments, name) is not None:
                raise UserError(f"--{name.replace('_', '-')} goes with --pairs-from: leave it out")


if __name__ == "__main__":
    main()
