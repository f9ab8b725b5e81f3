"""Originals beside what augmentation makes of them:

    python tools/preview.py CONFIG [key=value ...] -o grid.png

A row is an image; its first column is the original, the next ones are what the run of CONFIG sees
at that place of epochs 0, 1, 2 … The images are the first that epoch 0 shows. All come from the
run's own loader: decoded, mirrored and turned, or not, as in training.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from facestream import UserError
from pipeline.order import Order
from training.assembly import create_loader, stream_batches
from training.command import command, whole_number
from training.config import Config, load_config
from training.data import TrainingData, open_training_data
from training.distributed import World, joined_world

_BORDER = 2  # white pixels between images
_PICTURES = (".png", ".jpg", ".jpeg")
_LARGEST_SIDE = 16_384  # pixels: what programs that show pictures can do with


def preview(config: Config, *, images: int, epochs: int) -> np.ndarray:
    """(H, W, 3) uint8: a row for each of `images`, the original and then `epochs` augmented ones.

    Raises UserError for what cannot be trained on, or not on the device of run.device here.
    """
    tile = config.data.image_size + 2 * _BORDER
    height, width = images * tile, (1 + epochs) * tile
    if max(height, width) > _LARGEST_SIDE:
        raise UserError(
            f"--images {images} --epochs {epochs} make {width} × {height} pixels: expected at most "
            f"{_LARGEST_SIDE} a side, fewer of them"
        )
    with joined_world(config.run.device) as world:
        data = open_training_data(config, world)
        batch = max(images, 2)  # none is smaller
        if batch > data.epoch_records:
            raise UserError(f"--images {images}: expected at most {data.epoch_records}, an epoch's")
        shown = data._replace(order=_AlwaysFirst(data.order), epoch_records=batch)
        originals = _epochs(config, world, shown, augment=())
        augmented = _epochs(config, world, shown, augment=config.data.augment)
        with closing(originals), closing(augmented):
            columns = [next(originals), *islice(augmented, epochs)]
    grid = np.stack(columns, axis=1)[:images]  # (images, 1 + epochs, size, size, 3)
    margins = ((0, 0), (0, 0), (_BORDER, _BORDER), (_BORDER, _BORDER), (0, 0))
    tiles = np.pad(grid, margins, constant_values=255)
    return np.concatenate(np.concatenate(tiles, axis=1), axis=1)


class _AlwaysFirst:
    """The records of epoch 0 in every epoch; what is drawn for them goes on changing."""

    def __init__(self, order: Order) -> None:
        self._order, self.locality = order, order.locality

    def __call__(self, position: np.ndarray, epoch: int) -> np.ndarray:
        return self._order(position, 0)


def _epochs(
    config: Config, world: World, shown: TrainingData, *, augment: Sequence[str]
) -> Generator[np.ndarray, None, None]:
    """(B, H, W, 3) uint8 of epochs 0, 1, 2 …, as the run's loader makes them."""
    data = replace(config.data, global_batch=shown.epoch_records, augment=tuple(augment))
    loader, _ = create_loader(replace(config, data=data), world, shown)
    with closing(stream_batches(loader)) as batches:
        for batch in batches:
            yield batch.images.permute(0, 2, 3, 1).cpu().numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0].rstrip(":"))
    parser.add_argument("config", type=Path, help="a configuration file")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="as for train_dist.py"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="the picture to write")
    some = whole_number(1, 1000)
    parser.add_argument("--images", type=some, default=8, help="rows (default 8)")
    parser.add_argument("--epochs", type=some, default=8, help="augmented columns (default 8)")
    arguments = parser.parse_intermixed_args()
    with command("preview"):
        if arguments.output.suffix.lower() not in _PICTURES:
            raise UserError(f"-o {arguments.output}: expected {' or '.join(_PICTURES)} at its end")
        config = load_config(arguments.config, arguments.overrides)
        grid = preview(config, images=arguments.images, epochs=arguments.epochs)
        Image.fromarray(np.ascontiguousarray(grid)).save(arguments.output)
    print(f"wrote {arguments.output}: {arguments.images} images, originals on the left")


if __name__ == "__main__":
    main()
