"""Sets whose images tell their numbers, and batches of them."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.dali_loader import Batch, Loader
from pipeline.records.index import RecordIndex, open_index
from pipeline.records.recordio import RecordWriter, pack_image

CPU = torch.device("cpu")
SIZE = 32


def encode(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, quality=95)
    return file.getvalue()


def picture(k: int) -> np.ndarray:
    """An image that tells its number, lossless as PNG."""
    return np.random.default_rng(k).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


WAYS = pytest.mark.parametrize(
    "augment",
    [
        pytest.param(("flip",), id="threads"),
        pytest.param(("light",), id="dali", marks=pytest.mark.dali),
    ],
)


def write_set(
    folder: Path, instead: Mapping[int, bytes] | None = None, *, count: int = 50
) -> RecordIndex:
    """train.rec of so many images, each a person's own; some records hold other bytes."""
    with RecordWriter(folder / "train.rec") as writer:
        for k in range(count):
            image = (instead or {}).get(k) or encode(picture(k))
            writer.write(pack_image(image, float(k), k))
    return open_index(folder)


def loader(index: RecordIndex, **changes: Any) -> Loader:
    settings = {"global_batch": 12, "device": CPU, "image_size": SIZE, "seed": 5}
    return Loader(index, **{**settings, **changes})


def take(stream: Iterator[Batch], count: int) -> tuple[torch.Tensor, torch.Tensor]:
    batches = [next(stream) for _ in range(count)]
    return torch.cat([b.images for b in batches]), torch.cat([b.labels for b in batches])
