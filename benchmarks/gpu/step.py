"""A whole training step on a batch that is on the device already; arcface_torch's beside ours.

Theirs is the same network in NCHW under float16 autocast with loss scaling, and arcface_torch's
head (benchmarks/baselines.py); on a CPU float32. It is for one process: on several ranks ours is
alone. The roof is the arithmetic of the convolutions and of the head's products.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.baselines import ArcfaceTorchHead
from benchmarks.gpu.figures import Figures, Row, peak_mb, run_stage, seconds_of
from models import create_model
from models.kernels.batch_norm import obstacle
from training.assembly import create_step
from training.config import Config, DataConfig, HeadConfig, ModelConfig, StepConfig
from training.distributed import World
from training.step.graphed_step import GraphedStep
from training.step.optim import set_learning_rate
from training.step.precision import choose_precision

DIM, SIZE = 512, 112
CLASSES = 93_431  # as many as MS1MV3 has, all of them in every step
BASELINE, FUSED = "arcface_torch", "ours, fused"
OURS: dict[str, tuple[dict[str, Any], Literal["head", "full"]]] = {  # way: model., step.cuda_graph
    "ours": ({}, "head"),
    FUSED: ({"fused": True}, "head"),
    "ours, compiled": ({"compile": True}, "head"),
    "ours, recorded": ({}, "full"),
    "ours, compiled and recorded": ({"compile": True}, "full"),
}
CASES = [
    ("iresnet50", 512, (BASELINE, "ours", FUSED, "ours, compiled")),
    ("iresnet50", 128, (BASELINE, "ours", "ours, recorded", "ours, compiled and recorded")),
    ("iresnet18", 512, (BASELINE, "ours")),
    ("iresnet100", 256, (BASELINE, "ours")),
]
REHEARSAL, FEW_CLASSES = [("iresnet10", 2, (BASELINE, *OURS))], 100


def step(figures: Figures) -> None:
    world = figures.world
    classes = FEW_CLASSES if figures.quick else CLASSES
    if figures.quick:
        torch.compiler.set_stance("force_eager")  # all that surrounds the compiler, without it

    def measure(*, model: str, batch: int, way: str) -> Row:
        make = _theirs if way == BASELINE else _ours
        timing = seconds_of(
            make(world, model, way, batch=batch, classes=classes),
            world.device,
            warm_up=2 if figures.quick else 14,  # a step is recorded after eleven others
            repeats=2 if figures.quick else 20,
        )
        return {
            **timing,
            "images_per_s": world.world_size * batch / timing["seconds"],
            **peak_mb(world.device),
            "flops": step_flops(model, world, batch=batch, classes=classes),
        }

    for model, batch, ways in REHEARSAL if figures.quick else CASES:
        for way in ways:
            if way == FUSED and obstacle(world.device):
                continue  # as on a CPU
            if way != BASELINE or world.world_size == 1:
                figures.measure(measure, model=model, batch=batch, way=way)


def step_flops(model: str, world: World, *, batch: int, classes: int) -> int:
    """Of a rank's step: the network's products forward and twice backward, and the head's three."""
    head = 2 * batch * classes * DIM  # a share of the classes, but the batches of all ranks
    return 3 * (batch * _forward_flops(model) + head)


@lru_cache
def _forward_flops(model: str) -> int:
    """Of one image."""
    backbone = create_model(model, embedding_dim=DIM).eval()
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        backbone(torch.zeros(1, 3, SIZE, SIZE))
    return counted.get_total_flops()


def _batch(world: World, *, batch: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """As the loader yields it: (B, 3, H, W) uint8 in channels_last, and (B,) int64."""
    torch.manual_seed(world.rank)
    shape = (batch, SIZE, SIZE, 3)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=world.device)
    labels = torch.randint(0, classes, (batch,), device=world.device)
    return images.permute(0, 3, 1, 2), labels


def _ours(world: World, model: str, way: str, *, batch: int, classes: int) -> Callable[[], object]:
    how, recorded = OURS[way]
    config = Config(
        data=DataConfig(train="none.rec", global_batch=batch * world.world_size),
        model=ModelConfig(name=model, embedding_dim=DIM, **how),
        head=HeadConfig(num_classes=classes, loss_args={"gradient": "straight_through"}),
        step=StepConfig(cuda_graph=recorded),
    )
    precision = choose_precision(world.device)
    train, about = create_step(config, world, num_classes=classes, precision=precision)
    print(f"{way}: {about}", flush=True)
    call = GraphedStep(train, world.device) if recorded == "full" else train
    images, labels = _batch(world, batch=batch, classes=classes)
    lr = set_learning_rate(train.optimizer, 0.02)
    return lambda: call(images, labels, lr, lambda phase: None)


def _theirs(world: World, model: str, way: str, *, batch: int, classes: int) -> Callable[[], None]:
    device, accelerated = world.device, world.device.type != "cpu"
    torch.manual_seed(0)
    network = create_model(model, embedding_dim=DIM).to(device)
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    head = ArcfaceTorchHead(
        *(classes, DIM), sample_rate=1.0, seed=0, autocast=accelerated, device=device
    )
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    scaler = torch.amp.GradScaler(device.type, enabled=accelerated)
    images, labels = _batch(world, batch=batch, classes=classes)
    pixels = images.float().contiguous().div(127.5).sub(1)

    def step() -> None:
        with torch.autocast(device.type, torch.float16, enabled=accelerated):
            embeddings = network(pixels)
        loss = head(embeddings.float(), labels)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        head.step(0.02)

    return step


if __name__ == "__main__":
    run_stage(step)
