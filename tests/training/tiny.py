"""A training set and a configuration small enough to train in a second or two."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from torch import nn

from evaluation.pair_set import write_bin
from evaluation.scoring import Scored
from pipeline.records.recordio import RecordWriter, pack_image
from training.config import Config, DataConfig, HeadConfig, ModelConfig, OptimConfig, RunConfig
from training.saving.files import Scores
from training.scored_sets import ScoredSet

SIZE, IDENTITIES, IMAGES = 32, 10, 7


def write_set(folder: Path) -> Path:
    """Identities are colors and images noise around them, so that there is something to learn."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, of_people = np.random.default_rng(1), colors()
    with RecordWriter(folder / "train.rec") as writer:
        for key in range(IDENTITIES * IMAGES):
            noise = rng.integers(-40, 41, (SIZE, SIZE, 3))
            pixels = (of_people[key // IMAGES] + noise).clip(0, 255).astype(np.uint8)
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "PNG")
            writer.write(pack_image(file.getvalue(), float(key // IMAGES), key))
    return folder


def colors() -> np.ndarray:
    """(IDENTITIES, 3) RGB of each identity."""
    return np.random.default_rng(0).integers(40, 216, (IDENTITIES, 3))


def write_pairs(path: Path) -> Path:
    """20 pairs, half genuine: the second image of those is a noisy copy of the first."""
    rng = np.random.default_rng(0)
    images = []
    for i in range(20):
        blocks = rng.integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
        first, second = blocks.repeat(SIZE // 4, 1).repeat(SIZE // 4, 2)
        second = first if i % 2 == 0 else second
        for pixels in (first, second + rng.normal(0, 40, second.shape)):
            file = io.BytesIO()
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "PNG")
            images.append(file.getvalue())
    write_bin(path, images, np.arange(20) % 2 == 0)
    return path


def config(data: Path, output: Path) -> Config:
    """Five steps of twelve images an epoch, ten images left over, float32."""
    return Config(
        run=RunConfig(output=str(output), epochs=3, device="cpu"),
        data=DataConfig(train=str(data), global_batch=12, image_size=SIZE),
        model=ModelConfig(name="iresnet10", width=0.25, embedding_dim=16),
        head=HeadConfig(loss="cosface", loss_args={"margin": 0.2, "scale": 16.0}),
        optim=OptimConfig(lr=2.0, warmup_epochs=0.4),
    )


def scored(config: Config, score: Callable[[nn.Module], Scores], name: str = "pairs") -> ScoredSet:
    """A set that is scored when the configuration says; `score` gives its scores by any name."""
    assert isinstance(config.eval.every, int)

    def scores(network: nn.Module, last: bool) -> Scored:
        [found] = score(network).values()
        return Scored(found)

    paces = {"every": config.eval.every, "every_steps": config.eval.every_steps}
    return ScoredSet(name, scores, **paces)
