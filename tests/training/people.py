"""Training sets of named people, and steps and checkpoints on them that were never trained."""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pipeline.records.manifest import write_manifest
from pipeline.records.write_set import pack_set
from tests.training.saved import save
from tests.training.tiny import SIZE
from training.assembly import create_step
from training.config import Config
from training.data import TrainingData, count_classes, open_training_data
from training.distributed import World
from training.step.backbone import unwrapped
from training.step.precision import choose_precision
from training.step.train_step import TrainStep
from training.weights.center_transfer import put_centers
from training.weights.identities import Identities, write_identities


def write_people(folder: Path, names: Sequence[str], *, images: int = 5) -> Path:
    """A set whose identities have a color by their name; returns its .rec."""
    packed = [[_portrait(name, k) for k in range(images)] for name in names]
    pack_set(folder, packed)
    rec = folder / "train.rec"
    count = len(names) * images
    write_manifest(rec, source=[], options={}, names=names, images=count, kinds={})
    return rec


def _portrait(name: str, number: int) -> bytes:
    seed = zlib.crc32(name.encode())
    color = np.random.default_rng(seed).integers(40, 216, 3)
    noise = np.random.default_rng([seed, number]).integers(-40, 41, (SIZE, SIZE, 3))
    file = io.BytesIO()
    Image.fromarray((color + noise).clip(0, 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def build(config: Config, world: World) -> tuple[TrainStep, TrainingData]:
    """A step as a run would begin it."""
    data = open_training_data(config, world)
    step, _ = create_step(
        config,
        world,
        num_classes=count_classes(data.records, config.head.num_classes),
        precision=choose_precision(world.device, "fp32"),
    )
    return step, data


def save_run(config: Config, world: World, *, known: bool = True) -> tuple[Path, TrainStep]:
    """A run's folder with one checkpoint, all of whose numbers were drawn again.

    known: whether it says who its people are.
    """
    step, data = build(config, world)
    network = unwrapped(step.backbone)
    torch.manual_seed(1)
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor += 0.01 * torch.rand(tensor.shape)
    everyone = torch.randn(step.head.num_classes, step.head.centers.shape[1])
    first = step.head.shard.first_class
    own = everyone[first : first + step.head.shard.num_local]
    put_centers(step.head, torch.arange(len(own)), own)
    step.head.velocity.fill_(0.5)
    output = Path(config.run.output)
    saved = save(
        output,
        step=3,
        config=config,
        train_step=step,
        facts={"dataset": data.fingerprint, "number of classes": step.head.num_classes},
    )
    if known and world.is_main:
        people = Identities.of(data.records, num_classes=step.head.num_classes)
        write_identities(output, people)
    return saved, step


def with_data(config: Config, *files: Path, output: Path) -> Config:
    """The same configuration for other files and another run."""
    return replace(
        config,
        data=replace(config.data, train=[str(file) for file in files]),
        run=replace(config.run, output=str(output)),
    )
