"""Noise that stands for faces, models of it, and evaluate, called on them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from evaluation.pair_set import write_bin
from models import create_model
from tests.commands import Ended, call
from tools.evaluate import main

SIZE, PAIRS, BATCH = 32, 30, 8
OPTIONS = ("--batch", BATCH, "--device", "cpu", "--precision", "fp32", "--draws", 20)
WRITTEN = ["report.html", "results.csv", "results.json", "results.md", "results.tex"]


def png(seed: int) -> bytes:
    """Noise around a color: pairs of one seed show one person."""
    random = np.random.default_rng(seed)
    color = np.random.default_rng(seed // 2).integers(40, 216, 3)
    pixels = (color + random.integers(-40, 41, (SIZE, SIZE, 3))).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_set(path: Path, *, damaged: tuple[int, ...] = ()) -> Path:
    """Pairs 2k and 2k + 1 of seeds show one person where k is even."""
    same = [k % 2 == 0 for k in range(PAIRS)]
    images = [png(4 * k + shift) for k in range(PAIRS) for shift in (0, 1 if same[k] else 2)]
    for place in damaged:
        images[place] = images[place][:200]
    write_bin(path, images, same)
    return path


def write_model(path: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    network = create_model("iresnet10", embedding_dim=8, image_size=SIZE, width=0.25)
    torch.save(network.state_dict(), path)
    return path


def fill(folder: Path) -> None:
    """Two models and a set."""
    write_set(folder / "small.bin")
    write_model(folder / "a.pth", 0)
    write_model(folder / "b.pth", 1)


def run(*arguments: object, output: str = "out") -> Ended:
    return call(main, *arguments, "-o", output, *OPTIONS)
