"""Originals beside what augmentation makes of them:

    python tools/preview.py CONFIG [key=value ...] -o grid.png

A row is an image; its first column is the original, the next ones are what the run of CONFIG sees
at that place of epochs 0, 1, 2 … The images are the first that epoch 0 shows.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline import dali
from pipeline.augment import Augmentation, Draw
from pipeline.dali_decode import find_faults
from training.command import command, whole_number
from training.config import Config, load_config
from training.data import open_training_data
from training.distributed import join_world, leave_world

_BORDER = 2  # white pixels between images
_PICTURES = (".png", ".jpg", ".jpeg")
_LARGEST_SIDE = 16_384  # pixels: what programs that show pictures can do with


def preview(config: Config, *, images: int, epochs: int) -> np.ndarray:
    """(H, W, 3) uint8: a row for each of `images`, the original and then `epochs` augmented ones.

    Raises ValueError for what cannot be trained on, and for images that cannot be shown.
    """
    tile = config.data.image_size + 2 * _BORDER
    height, width = images * tile, (1 + epochs) * tile
    if max(height, width) > _LARGEST_SIDE:
        raise ValueError(
            f"--images {images} --epochs {epochs} make {width} × {height} pixels: expected at most "
            f"{_LARGEST_SIDE} a side, fewer of them"
        )
    world = join_world("cpu")
    try:
        data = open_training_data(config, world)
    finally:
        leave_world()
    if images > data.epoch_records:
        raise ValueError(f"--images {images}: expected at most {data.epoch_records}, an epoch's")
    position = np.arange(images)
    encoded = [data.records.image(i) for i in data.order(position, 0)]
    size = config.data.image_size
    for i, fault in find_faults(encoded, size).items():
        raise ValueError(f"image {i} of epoch 0 {fault}: set data.image_size, or leave it out")
    columns = [augmented(encoded, (), Draw(position, seed=0, epoch=0, size=size))]
    for epoch in range(epochs):
        draw = Draw(position, seed=config.run.seed, epoch=epoch, size=size)
        columns.append(augmented(encoded, config.data.augment, draw))
    grid = np.stack(columns, axis=1)  # (images, 1 + epochs, size, size, 3)
    margins = ((0, 0), (0, 0), (_BORDER, _BORDER), (_BORDER, _BORDER), (0, 0))
    tiles = np.pad(grid, margins, constant_values=255)
    return np.concatenate(np.concatenate(tiles, axis=1), axis=1)


def augmented(encoded: Sequence[np.ndarray], entries: Sequence[str], draw: Draw) -> np.ndarray:
    """Decode images and put them through the recipes of `entries`: (B, H, W, 3) uint8."""
    augmentation = Augmentation(entries)
    arguments = augmentation.argument_types

    @dali.pipeline_def(enable_conditionals=True)
    def graph() -> object:
        inputs, *nodes = dali.fn.external_source(
            source=lambda: (list(encoded), *augmentation.arrays(draw)),
            num_outputs=1 + len(arguments),
            batch=True,
            dtype=[dali.types.UINT8, *(dtype for dtype, _ in arguments)],
            ndim=[1, *(ndim for _, ndim in arguments)],
        )
        images = dali.fn.decoders.image(inputs, device="cpu", output_type=dali.types.RGB)
        return augmentation(images, nodes)

    pipeline = graph(batch_size=len(encoded), num_threads=1, device_id=None, prefetch_queue_depth=1)
    pipeline.build()
    return np.array(pipeline.run()[0].as_array())


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
            raise ValueError(f"-o {arguments.output}: expected {' or '.join(_PICTURES)} at its end")
        config = load_config(arguments.config, arguments.overrides)
        grid = preview(config, images=arguments.images, epochs=arguments.epochs)
        Image.fromarray(np.ascontiguousarray(grid)).save(arguments.output)
    print(f"wrote {arguments.output}: {arguments.images} images, originals on the left")


if __name__ == "__main__":
    main()
