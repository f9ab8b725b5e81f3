"""Draw a training set of synthetic faces:  python tools/make_synthetic.py OUT

OUT gets train.rec, train.idx and property as InsightFace has them, val.bin with pairs of identities
that are not in it, and faces.png to look at. Nothing is drawn again where OUT holds the same set.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.progress import track

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluation.pair_set import write_bin
from pipeline.records.recordio import RecordError
from pipeline.records.write_set import pack_set
from synthetic import contact_sheet, encode_jpeg, make_pairs, render
from training.command import command, whole_number

_SHEET = (8, 6)  # identities, images of each


def _draw_one(shot: tuple[int, int], *, seed: int, size: int) -> bytes:
    identity, image = shot
    return encode_jpeg(render(identity, image, seed=seed, size=size))


def _draw_identity(identity: int, *, images: int, seed: int, size: int) -> list[bytes]:
    return [_draw_one((identity, k), seed=seed, size=size) for k in range(images)]


def make_synthetic(
    folder: Path, *, identities: int, images: int, pairs: int, seed: int, size: int = 112
) -> None:
    """Write the set into `folder`, images of size × size pixels, drawing on all cores.

    Identities 0 … identities − 1 are for training, half as many after them for the pairs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    look: dict[str, Any] = {"seed": seed, "size": size}
    held_out = range(identities, identities + max(2, identities // 2))
    chosen, same = make_pairs(held_out, pairs=pairs, seed=seed)  # refused before any is drawn
    unseen = not sys.stdout.isatty()  # a bar would leave a line there
    with multiprocessing.get_context("spawn").Pool(len(os.sched_getaffinity(0))) as pool:
        drawn: Iterable[list[bytes]] = track(
            pool.imap(partial(_draw_identity, images=images, **look), range(identities)),
            "draw training set",
            total=identities,
            disable=unseen,
        )
        pack_set(folder, drawn)
        encoded = track(
            pool.imap(partial(_draw_one, **look), chosen, chunksize=32),
            "draw pairs",
            total=len(chosen),
            disable=unseen,
        )
        write_bin(folder / "val.bin", list(encoded), same)
    sheet = contact_sheet(range(_SHEET[0]), _SHEET[1], **look)
    Image.fromarray(np.ascontiguousarray(sheet)).save(folder / "faces.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    many = whole_number(1, 10**6)
    parser.add_argument("--identities", type=many, default=400, help="to train on (default 400)")
    parser.add_argument("--images", type=many, default=25, help="of each identity (default 25)")
    parser.add_argument("--pairs", type=many, default=1200, help="of others, a multiple of 20")
    pixels = whole_number(16, 1024)
    parser.add_argument("--size", type=pixels, default=112, help="pixels a side (default 112)")
    parser.add_argument("--seed", type=whole_number(0, 2**32 - 1), default=0)
    arguments = parser.parse_args()
    settings = {key: value for key, value in vars(arguments).items() if key != "output"}
    with command("make_synthetic"):
        # A picture stands for the code that draws it: faces drawn otherwise are another set.
        picture = render(0, 0, seed=arguments.seed, size=arguments.size)
        drawn = {"picture": hashlib.sha256(picture.tobytes()).hexdigest()}
        recipe = arguments.output / "synthetic.json"
        if recipe.exists() and recipe.read_bytes() == json.dumps(settings | drawn).encode():
            print(f"{arguments.output} already holds this set")
            return
        rec = arguments.output / "train.rec"
        if rec.exists() and not recipe.exists():
            raise RecordError(f"{rec} exists and was not drawn here: name another folder")
        # Claimed before it is drawn, so that a set that was interrupted can be drawn again.
        arguments.output.mkdir(parents=True, exist_ok=True)
        recipe.write_text(json.dumps("unfinished"))
        rec.unlink(missing_ok=True)
        make_synthetic(arguments.output, **settings)
        recipe.write_text(json.dumps(settings | drawn))
    print(
        f"{arguments.identities} identities x {arguments.images} images of {arguments.size} pixels "
        f"in {arguments.output}, {arguments.pairs} pairs of others in val.bin; "
        f"look at {arguments.output / 'faces.png'}"
    )


if __name__ == "__main__":
    main()
