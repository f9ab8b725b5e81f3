"""A run of arcface_torch, taken over in one command, has the losses that it would have had."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models import Architecture
from models.normalize import normalize
from tests.ranks import run_ranks
from tests.training import tiny
from tests.training.arcface_torch.reference import Reference
from tools.import_arcface_torch import import_arcface_torch
from training.assembly import stream_batches
from training.config import load_config
from training.distributed import World
from training.loop import Trainer
from training.step.precision import choose_precision

NETWORK = Architecture("iresnet18", embedding_dim=16, image_size=tiny.SIZE)
MARGINS = {"arcface": (1.0, 0.5, 0.0), "cosface": (1.0, 0.0, 0.4)}
STEPS, WARMUP_EPOCHS, EPOCHS, DONE, BATCH = 5, 1, 6, 2, 12  # steps an epoch
RATE = 0.005
COLORS = torch.from_numpy(tiny.colors()) / 127.5 - 1


def log_of(data: Path, world_size: int, margin: str) -> str:
    """training.log, as train_v2.py begins it."""
    settings = {
        "margin_list": MARGINS[margin],
        "network": "r18",
        "resume": False,
        "save_all_states": True,
        "output": "work_dirs/r18",
        "embedding_size": 16,
        "sample_rate": 1.0,
        "interclass_filtering_threshold": 0,
        "fp16": False,
        "batch_size": BATCH // world_size,
        "optimizer": "sgd",
        "lr": RATE,
        "momentum": 0.9,
        "weight_decay": 0.0005,
        "gradient_acc": 1,
        "seed": 2048,
        "rec": str(data),
        "num_classes": tiny.IDENTITIES,
        "num_image": tiny.IDENTITIES * tiny.IMAGES,
        "num_epoch": EPOCHS,
        "warmup_epoch": WARMUP_EPOCHS,
        "val_targets": [],
        "total_batch_size": BATCH,
        "warmup_step": STEPS * WARMUP_EPOCHS,
        "total_step": STEPS * EPOCHS,
    }
    lines = [f": {key}{' ' * (25 - len(key))}{value}" for key, value in settings.items()]
    lines = ["rank_id: 0", ": lr                       99.0", "rank_id: 0", *lines]
    return "".join(f"Training: 2026-01-01 12:00:00,000-{line}\n" for line in lines)


def reference(margin: str) -> Reference:
    torch.manual_seed(0)
    return Reference(
        NETWORK,
        num_classes=tiny.IDENTITIES,
        margin_list=MARGINS[margin],
        rate=RATE,
        warmup=STEPS * WARMUP_EPOCHS,
        total=STEPS * EPOCHS,
    )


def images_of(people: Tensor) -> Tensor:
    noise = torch.rand(len(people), 3, tiny.SIZE, tiny.SIZE) - 0.5
    return COLORS[people, :, None, None] + 0.6 * noise


def begin(world: World, folder: Path, margin: str) -> None:
    """Two epochs of arcface_torch, on images like those to come."""
    theirs = reference(margin)
    torch.manual_seed(1)
    with torch.no_grad():  # past the first steps, in which their loss meets its upper limit
        people = torch.arange(tiny.IDENTITIES)
        theirs.weight.copy_(theirs.backbone(images_of(people))[theirs.own])
    torch.manual_seed(1 + world.rank)
    for _ in range(STEPS * DONE):
        labels = torch.randint(tiny.IDENTITIES, (BATCH // world.world_size,))
        theirs.step(images_of(labels), labels)
    theirs.save(folder, epoch=DONE)


def go_on(world: World, folder: Path, ours: Path, margin: str) -> list[tuple[float, float]]:
    """Five losses of both, on the same batches."""
    theirs = reference(margin)
    theirs.resume(folder)
    config = load_config(ours / "config.py", ["run.device=cpu", "data.decode=cpu"])
    trainer = Trainer(config, world, precision=choose_precision(world.device, "fp32"))
    assert trainer.steps_done == STEPS * DONE
    losses = []
    with closing(stream_batches(trainer.loader, DONE, 0)) as stream:
        for _, batch in zip(range(5), stream):
            images = normalize(batch.images, torch.float32)
            expected = theirs.step(images.contiguous(), batch.labels.clone())
            found = trainer.train_on(batch, lambda name: None).loss
            losses.append((found.item(), expected))
    trainer.close()
    return losses


@pytest.mark.slow(seconds=6)
@pytest.mark.parametrize(("world_size", "margin"), [(1, "arcface"), (2, "cosface")])
def test_the_next_five_losses_are_theirs(world, data, tmp_path, world_size, margin, capsys):
    folder, ours = tmp_path / "theirs", tmp_path / "ours"
    folder.mkdir()
    (folder / "training.log").write_text(log_of(data, world_size, margin))
    run_ranks(begin, folder, margin, world_size=world_size, folder=tmp_path)
    import_arcface_torch([folder], ours)
    start = "python" if world_size == 1 else "torchrun --nproc_per_node=2"
    assert f"go on         {start} train_dist.py {ours / 'config.py'}" in capsys.readouterr().out
    for losses in run_ranks(go_on, folder, ours, margin, world_size=world_size, folder=tmp_path):
        assert len(losses) == 5
        for number, (found, expected) in enumerate(losses):
            # Roundings grow from step to step; without momentum the second is off by 0.03.
            assert found == pytest.approx(expected, rel=1e-5 if number < 2 else 1e-3)
