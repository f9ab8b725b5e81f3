"""One short training of a small network with a run's own step, and what it has come to.

For experiments of many of them on a CPU: one thread, about a minute each. Step, head, optimizer and
schedule are those of a run (training/step/, heads/); the network is an IResNet's blocks behind a
cheap stem, and the images are in memory already.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.kept_faces import SIZE, Faces
from evaluation.metrics.folds import FoldAccuracy, Folds
from evaluation.metrics.roc import Roc
from heads import PartialFC
from models import Family, normalize, register_network
from models.iresnet import IBasicBlock
from models.prelu import PReLU
from pipeline import counter
from pipeline.order import permute
from training.assembly import create_step
from training.config import Config, DataConfig, HeadConfig, ModelConfig, OptimConfig, RunConfig
from training.distributed import join_world, leave_world
from training.reporting.meters import Meters
from training.step.optim import set_learning_rate
from training.step.precision import Precision, choose_precision
from training.step.schedules import create_schedule
from training.step.train_step import TrainStep

FALSE_ACCEPT_RATE = 1e-2
CENTERS_LR = 4.0  # ten times the network's: each center is that of an image a few times only
MARGIN = {"margin": 0.2, "scale": 16.0}  # of ArcFace, where a head has no arguments of its own
READINGS = 8  # an epoch, of a journal
_AT_ONCE = 500  # images, where none is trained on
_JUDGED = 5_000  # images that the loss over all classes is of


class Strided(nn.Module):
    """Residual blocks at a quarter of the resolution and below: (B, 3, S, S) to (B, D).

    Args:
        widths: channels of the stem and after each block.
    """

    def __init__(self, *, embedding_dim: int, image_size: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, widths[0], kernel_size=4, stride=4, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.prelu = PReLU(widths[0])
        self.blocks = nn.Sequential(*(IBasicBlock(a, b, stride=2) for a, b in pairwise(widths)))
        self.bn2 = nn.BatchNorm2d(widths[-1])
        pixels = (image_size // 2 ** (len(widths) + 1)) ** 2
        self.fc = nn.Linear(widths[-1] * pixels, embedding_dim)
        self.features = nn.BatchNorm1d(embedding_dim, affine=False)

    def forward(self, images: Tensor) -> Tensor:
        x = self.blocks(self.prelu(self.bn1(self.stem(images))))
        x = self.bn2(x).flatten(1)
        with torch.autocast(images.device.type, enabled=False):
            return self.features(self.fc(x.float()))


def configured(head: HeadConfig, *, seed: int, epochs: int) -> Config:
    """What all of these trainings have in common."""
    register_network("strided", Family(build=Strided, options={"widths": [16, 32, 64]}))
    return Config(
        run=RunConfig(epochs=epochs, seed=seed, device="cpu"),
        data=DataConfig(train="in memory", global_batch=128, image_size=SIZE),
        model=ModelConfig(name="strided", embedding_dim=128),
        head=replace(
            head,
            loss_args=head.loss_args or MARGIN,
            lr=head.lr or CENTERS_LR,
        ),
        optim=OptimConfig(lr=0.4, warmup_epochs=0.5),
    )


def train(
    config: Config,
    faces: Faces,
    *,
    journal: list[dict[str, Any]] | None = None,
    spoil: Callable[[TrainStep], object] = lambda step: None,
) -> dict[str, Any]:
    """Train and judge, on one thread.

    Args:
        journal: gets what a run's metrics.jsonl has: readings, `READINGS` an epoch, and a
            verification before the first and after each.
        spoil: done to the step before its first.

    Returns:
        accuracy: of ten folds of pairs of people that it has not seen.
        tar: share of genuine pairs accepted where 1 % of the impostors are.
        loss: mean over training images, of the softmax over all classes, with the margin.
        sampled_loss: the mean of what the last tenth of the steps had, over the classes they took.
        seconds: of CPU time, of the training alone.
    """
    torch.set_num_threads(1)
    world = join_world("cpu")
    precision = choose_precision(world.device, config.step.precision)
    precision.apply()
    step, _ = create_step(config, world, num_classes=faces.num_classes, precision=precision)
    spoil(step)
    batch, seed = config.data.global_batch, config.run.seed
    per_epoch = len(faces.labels) // batch
    schedule = create_schedule(
        config.optim,
        global_batch=batch,
        epochs=config.run.epochs,
        steps_per_epoch=per_epoch,
    )
    meters, losses = Meters(world.device), []
    if journal is not None:
        scores = _verify(step.backbone.eval(), faces, precision)
        step.backbone.train()
        journal.append({"step": 0, "epoch": 0.0, "verification": {"pairs": scores}})
    aside = 0.0  # seconds
    began = time.process_time()
    for number in range(schedule.total_steps):
        epoch, place = divmod(number, per_epoch)
        positions = np.arange(place * batch, (place + 1) * batch)
        chosen = permute(positions, num_records=len(faces.labels), seed=seed, epoch=epoch)
        images = faces.images[chosen]
        mirrored = counter.uniform(counter.key(seed, epoch, "flip"), positions) < 0.5
        images[mirrored] = images[mirrored, :, ::-1]
        lr = set_learning_rate(step.optimizer, schedule(number))
        labels = torch.from_numpy(faces.labels[chosen])
        result = step(_pixels(images), labels, lr, lambda phase: None)
        losses.append(result.loss)
        if journal is None:
            continue
        paused = time.process_time()
        meters.add(result)
        at = {"step": number + 1, "epoch": (number + 1) / per_epoch}
        if (place + 1) % max(1, per_epoch // READINGS) == 0:
            journal.append({**at, **_of_training(meters.read()), "lr": schedule(number)})
        if place == per_epoch - 1:
            scores = _verify(step.backbone.eval(), faces, precision)
            step.backbone.train()
            journal.append({**at, "verification": {"pairs": scores}})
        aside += time.process_time() - paused
    seconds = time.process_time() - began - aside
    scores = _verify(step.backbone.eval(), faces, precision)
    loss = _loss(step.backbone, step.head.eval(), faces, precision)
    leave_world()
    last = torch.stack(losses[-len(losses) // 10 :])
    return scores | {
        "loss": round(loss, 4),
        "sampled_loss": round(float(last.mean()), 4),
        "seconds": round(seconds, 1),
    }


def _of_training(reading: dict[str, float]) -> dict[str, float | None]:
    """What does not depend on the machine; as JSON, which has no NaN."""
    return {
        name: None if math.isnan(value) else round(value, 4)
        for name, value in reading.items()
        if name != "memory_mb"
    }


def _pixels(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2)


@torch.no_grad()
def _embed(network: nn.Module, images: np.ndarray, precision: Precision) -> Tensor:
    with precision.autocast(torch.device("cpu")):
        return network(normalize(_pixels(images), precision.compute_dtype)).float()


def _verify(network: nn.Module, faces: Faces, precision: Precision) -> dict[str, float]:
    parts = range(0, len(faces.pairs), _AT_ONCE)
    pairs = (np.array(faces.pairs[start : start + _AT_ONCE]) for start in parts)
    found = torch.cat([_embed(network, images, precision) for images in pairs])
    unit = torch.nn.functional.normalize(found).numpy().astype(np.float64)
    cosines = (unit[0::2] * unit[1::2]).sum(1)
    folds = Folds.contiguous(len(cosines), 10)
    accuracy, *_ = FoldAccuracy(2 - 2 * cosines, faces.same, folds)()
    tar = Roc.of(cosines, faces.same).tar_at_far(FALSE_ACCEPT_RATE)
    return {"accuracy": round(float(accuracy), 5), "tar": round(float(tar), 5)}


def _loss(network: nn.Module, head: PartialFC, faces: Faces, precision: Precision) -> float:
    """Of the same images whatever was trained."""
    count = len(faces.labels)
    chosen = permute(np.arange(min(count, _JUDGED)), num_records=count, seed=0, epoch=0)
    parts = np.array_split(chosen, -(-len(chosen) // _AT_ONCE))
    with torch.no_grad():
        found = [
            head(
                _embed(network, faces.images[part], precision), torch.from_numpy(faces.labels[part])
            )
            for part in parts
        ]
    return float(torch.stack(found).mean())
