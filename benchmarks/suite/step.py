"""A whole training step, on a batch that is on the device already and on images from a .rec.

Beside ours arcface_torch's: the same network in NCHW under float16 autocast with loss scaling, and
its head (benchmarks/baselines.py); on a CPU float32. It is for one process: on several ranks ours
is alone. Of steps on real images `waiting` is the share of the time in which they wait for data.
The peak is the arithmetic of the convolutions and of the head's products.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.baselines import ArcfaceTorchHead
from benchmarks.loader import draw_set
from benchmarks.suite.facts import name_of
from benchmarks.suite.figures import Figures, run_stage
from benchmarks.suite.measure import Effort, Row, Step
from models import Architecture, create_model
from models.cost import multiply_adds
from models.kernels.batch_norm import obstacle
from pipeline.dali_decode import choose_decode_device
from pipeline.dali_loader import Loader, choose_threads
from pipeline.records.index import open_index
from training.assembly import create_step
from training.config import Config, DataConfig, HeadConfig, ModelConfig, StepConfig
from training.distributed import World
from training.step.graphed_step import GraphedStep
from training.step.optim import set_learning_rate
from training.step.precision import choose_precision

DIM, SIZE = 512, 112
CLASSES = 93_431  # as many as MS1MV3 has, all of them in every step
BASELINE, FUSED, REAL = "arcface_torch", "ours, fused", "ours, images from a .rec"
COMPILED, RECORDED = "ours, compiled", "ours, compiled and recorded"
OURS: dict[str, tuple[dict[str, Any], Literal["head", "full"]]] = {  # way: model., step.cuda_graph
    "ours": ({}, "head"),
    FUSED: ({"fused": True}, "head"),
    COMPILED: ({"compile": True}, "head"),
    "ours, recorded": ({}, "full"),
    RECORDED: ({"compile": True}, "full"),
    REAL: ({}, "head"),
}
ON_CPU = [("iresnet18", 32, (BASELINE, "ours", REAL)), ("iresnet50", 16, (BASELINE, "ours", REAL))]
ON_GPU = [
    ("iresnet50", 512, (BASELINE, "ours", FUSED, COMPILED, REAL)),
    ("iresnet50", 128, (BASELINE, "ours", "ours, recorded", RECORDED)),
    ("iresnet18", 512, (BASELINE, "ours")),
    ("iresnet100", 256, (BASELINE, "ours")),
]
TOYS, FEW_CLASSES = [("iresnet10", 2, (BASELINE, *OURS))], 100


def step(figures: Figures) -> None:
    world = figures.world
    on_cpu = world.device.type == "cpu"
    classes = FEW_CLASSES if figures.quick else CLASSES
    if figures.quick:
        torch.compiler.set_stance("force_eager")  # all that surrounds the compiler, without it
    # A step is recorded after eleven others.
    effort = Effort(seconds=20.0) if on_cpu else Effort(seconds=6.0, steps=5, warm_up=15)
    with tempfile.TemporaryDirectory() as folder:  # every rank draws for itself
        drawn, records = (8, 80) if figures.quick else (500, 20_000)
        rec = draw_set(Path(folder), drawn=drawn, records=records)
        for model, batch, ways in TOYS if figures.quick else ON_CPU if on_cpu else ON_GPU:
            case = Case(model, batch, classes, rec, world)
            makers = {way: partial(case.make, way) for way in ways if case.has(way)}
            figures.compare(makers, effort, more=case.costs, model=model, batch=batch)


class Case:
    """A network with so many images of a rank, and all ways of taking its steps."""

    def __init__(self, model: str, batch: int, classes: int, rec: Path, world: World) -> None:
        self.model, self.batch, self.classes = model, batch, classes
        self._rec, self._world = rec, world
        self._waits: list[float] = []  # seconds of each step on real images

    def has(self, way: str) -> bool:
        """Whether it can be taken here."""
        if way == FUSED:
            return not obstacle(self._world.device)  # as on a CPU
        return way != BASELINE or self._world.world_size == 1

    def make(self, way: str) -> Step:
        """One of OURS, or the baseline."""
        return self._theirs() if way == BASELINE else self._ours(way)

    def costs(self, way: str, found: Row) -> Row:
        """Of a rank's step, whose head has a share of the classes, but the batches of all ranks."""
        dtype = choose_precision(self._world.device).compute_dtype
        if way == BASELINE and self._world.device.type == "cpu":
            dtype = torch.float32
        network = multiply_adds(Architecture(self.model, embedding_dim=DIM))
        more = {
            "dtype": name_of(dtype),
            "images_per_s": self._world.world_size * self.batch / found["seconds"],
            "flops": 3 * 2 * self.batch * (network + self.classes * DIM),
        }
        if way == REAL:
            waits = self._waits[-found["rounds"] :]
            more["waiting"] = sum(waits) / len(waits) / found["seconds"]
        return more

    def _batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """As the loader yields it, the same again: (B, 3, H, W) uint8, channels_last, and (B,)."""
        torch.manual_seed(self._world.rank)
        device, shape = self._world.device, (self.batch, SIZE, SIZE, 3)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
        labels = torch.randint(0, self.classes, (self.batch,), device=device)
        while True:
            yield images.permute(0, 3, 1, 2), labels

    def _real_batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        world = self._world
        decode, _ = choose_decode_device(world.device)
        loader = Loader(
            open_index(self._rec),
            global_batch=self.batch * world.world_size,
            rank=world.rank,
            world_size=world.world_size,
            device=world.device,
            decode=decode,
            augment=("flip",),
            threads=choose_threads(world.local_world_size),
            image_size=SIZE,
        )
        stream = loader.stream(0)
        while True:
            begin = time.perf_counter()
            batch = next(stream)
            self._waits.append(time.perf_counter() - begin)
            yield batch.images, batch.labels % self.classes

    def _ours(self, way: str) -> Step:
        world = self._world
        how, recorded = OURS[way]
        config = Config(
            data=DataConfig(train="none.rec", global_batch=self.batch * world.world_size),
            model=ModelConfig(name=self.model, embedding_dim=DIM, **how),
            head=HeadConfig(num_classes=self.classes, loss_args={"gradient": "straight_through"}),
            step=StepConfig(cuda_graph=recorded),
        )
        precision = choose_precision(world.device)
        train, about = create_step(config, world, num_classes=self.classes, precision=precision)
        print(f"{way}: {about}", flush=True)
        call = GraphedStep(train, world.device) if recorded == "full" else train
        batches = self._real_batches() if way == REAL else self._batches()
        lr = set_learning_rate(train.optimizer, 0.02)

        def step() -> None:
            images, labels = next(batches)
            call(images, labels, lr, lambda phase: None)

        return step

    def _theirs(self) -> Step:
        device, accelerated = self._world.device, self._world.device.type != "cpu"
        torch.manual_seed(0)
        network = create_model(self.model, embedding_dim=DIM).to(device)
        network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        head = ArcfaceTorchHead(
            *(self.classes, DIM), sample_rate=1.0, seed=0, autocast=accelerated, device=device
        )
        optimizer = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
        scaler = torch.amp.GradScaler(device.type, enabled=accelerated)
        images, labels = next(self._batches())
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
