"""The whole step against arcface_torch's, on CPUs:

    python benchmarks/train_step.py

A step takes a batch from a .rec file, embeds it, computes loss and gradients over 100,000 classes
at a sample rate of 0.1, and updates backbone and centers. Ours does so in the dtype that it
chooses for this machine, once as it is, once with model.compile and once with model.winograd, too;
arcface_torch's in float32 and NCHW, with its head (see baselines.py), its clipping and torch's SGD,
fed by a torch DataLoader with two workers. They take turns in one process; medians and their ratios
count. Each case runs under glibc's default allocator, which gives large tensors fresh pages at
every step, and under one told not to. Results go to benchmarks/results/.

Beside each time stands the share that the limit has of it: the products of network and head at the
rate of a large one here, then what is between the convolutions, each BatchNorm one with what
follows it (models/traffic.py), at the rate of a large copy. On a CPU one waits for the other.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.baselines import ArcfaceTorchHead
from benchmarks.harness import (
    ALLOCATORS,
    about_cpu,
    in_own_process,
    medians,
    save,
    show,
    take_turns,
)
from benchmarks.loader import draw_set, torch_batches
from models import Architecture, create_model
from models.cost import multiply_adds
from models.traffic import bytes_an_image
from pipeline.dali_loader import Loader, choose_threads
from pipeline.records.index import open_index
from training.assembly import create_step
from training.config import Config, DataConfig, HeadConfig, ModelConfig
from training.distributed import World, join_world
from training.step.optim import set_learning_rate
from training.step.precision import choose_precision

CLASSES, DIM, RATE, LR = 100_000, 512, 0.1, 0.01
CASES = [("iresnet50", 16), ("iresnet18", 32)]
WARM_UP = 2


def our_step(world: World, rec: Path, model: str, batch: int, **how: Any) -> Callable[[], None]:
    """The trainer's step and stream; `how` are settings of the model."""
    config = Config(
        data=DataConfig(train=str(rec), global_batch=batch),
        model=ModelConfig(name=model, embedding_dim=DIM, **how),
        head=HeadConfig(
            sample_rate=RATE, num_classes=CLASSES, loss_args={"gradient": "straight_through"}
        ),
    )
    precision = choose_precision(world.device)
    train, about = create_step(config, world, num_classes=CLASSES, precision=precision)
    print(f"ours: {about}", file=sys.stderr)
    loader = Loader(
        open_index(rec),
        global_batch=batch,
        device=world.device,
        augment=("flip",),
        threads=choose_threads(1),
    )
    stream = loader.stream(0)
    lr = set_learning_rate(train.optimizer, LR)

    def step() -> None:
        images, labels, *_ = next(stream)
        train(images, labels, lr, lambda phase: None)

    return step


def their_step(rec: Path, model: str, batch: int) -> Callable[[], None]:
    """float32, NCHW."""
    torch.manual_seed(0)
    backbone = create_model(model, embedding_dim=DIM)
    backbone.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    backbone.train()
    head = ArcfaceTorchHead(CLASSES, DIM, sample_rate=RATE, seed=0)
    optimizer = torch.optim.SGD(backbone.parameters(), lr=LR, momentum=0.9, weight_decay=5e-4)
    batches = torch_batches(open_index(rec), batch=batch)
    stream = itertools.chain.from_iterable(itertools.repeat(batches))

    def step() -> None:
        images, labels = next(stream)
        loss = head(backbone(images.contiguous()), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(backbone.parameters(), 5)
        optimizer.step()
        optimizer.zero_grad()
        head.step(LR)
        loss.item()  # its meters do

    return step


def limit_of(model: str, batch: int, dtype: torch.dtype) -> dict[str, float]:
    """FLOPs and bytes of our step, the rates of this machine for both, and the seconds they take.

    Bytes are those between the convolutions, whose own overlap with their products; optimizer and
    head are left out.
    """
    architecture = Architecture(model, embedding_dim=DIM)
    head = round(CLASSES * RATE) * DIM
    flops = 3 * 2 * batch * (multiply_adds(architecture) + head)
    counted = bytes_an_image(architecture, fused=True)
    between = sum(count for kind, count in counted.items() if "convolution" not in kind)
    moved = batch * between * dtype.itemsize // torch.bfloat16.itemsize
    rates = _rates(dtype)
    seconds = flops / rates["flops_per_s"] + moved / rates["bytes_per_s"]
    return {"flops": flops, "bytes": moved, **rates, "seconds": seconds}


def _rates(dtype: torch.dtype) -> dict[str, float]:
    """The best of some tries: of a product of 2048³, and of a copy of 256 MB, read and written."""
    left, right = (torch.randn(2048, 2048).to(dtype) for _ in range(2))
    source = torch.zeros(64 << 20)
    target = torch.empty_like(source)
    ways = {"flops_per_s": lambda: left @ right, "bytes_per_s": lambda: target.copy_(source)}
    best = {name: min(taken) for name, taken in take_turns(ways, rounds=8).items()}
    amounts = {"flops_per_s": 2 * 2048**3, "bytes_per_s": 2 * source.nbytes}
    return {name: amounts[name] / seconds for name, seconds in best.items()}


def compare(*, rec: str, model: str, batch: int, repeats: int) -> dict[str, Any]:
    """The limit, and seconds of each step, taken in turn, warm."""
    path, world = Path(rec), join_world("cpu")
    steps = {
        "arcface_torch": their_step(path, model, batch),
        "ours": our_step(world, path, model, batch),
        "ours, compiled": our_step(world, path, model, batch, compile=True),
        "ours, winograd": our_step(world, path, model, batch, compile=True, winograd=True),
    }
    return {
        "limit": limit_of(model, batch, choose_precision(world.device).compute_dtype),
        "seconds": take_turns(steps, rounds=repeats, warm_up=WARM_UP),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0].rstrip(":"))
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--rec", type=Path, help="a .rec of 112×112 images (default: drawn faces)")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a measurement's settings, as JSON
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(compare(**json.loads(arguments.one))))
        return
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        rec = arguments.rec or draw_set(Path(folder))
        for (model, batch), allocator in itertools.product(CASES, ALLOCATORS):
            case = {"model": model, "batch": batch}
            settings = {"rec": str(rec), "repeats": arguments.repeats, **case}
            found = in_own_process(__file__, settings, ALLOCATORS[allocator])
            rows.append(case | {"allocator": allocator} | found)
    _print(rows)
    precision = choose_precision(torch.device("cpu"))
    about = about_cpu() | {
        "classes": CLASSES,
        "sample_rate": RATE,
        "our_dtype": str(precision.compute_dtype).removeprefix("torch."),
    }
    save("train_step", about, results=rows)


def _print(rows: list[dict[str, Any]]) -> None:
    lines = []
    for row in rows:
        typical = medians(row["seconds"])
        for name, taken in typical.items():
            rate, faster = row["batch"] / taken, typical["arcface_torch"] / taken
            case = (row["model"], str(row["batch"]), row["allocator"], name)
            share = row["limit"]["seconds"] / taken
            lines.append((*case, f"{rate:.1f}", f"{faster:.2f}", f"{share:.2f}"))
    columns = ("model", "batch", "allocator", "way", "images/s", "× arcface_torch", "limit / time")
    show(columns, lines, title=f"{CLASSES:,} classes at {RATE}; medians")


if __name__ == "__main__":
    main()
