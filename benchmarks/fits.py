"""How many identities fit on eight GPUs of 80 GB, as it is predicted:  python benchmarks/fits.py

Prints the table of docs/heads.md, to which a test holds it. Nothing is measured and no GPU is
needed: the prediction is the one that every run prints before its first step.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from training.config import Config, DataConfig, HeadConfig, ModelConfig
from training.distributed import World
from training.planning.memory import predict, predict_head
from training.step.precision import Precision

GPUS, ROOM = 8, 80e9  # bytes of each
IDENTITIES = (10_000_000, 50_000_000, 80_000_000, 140_000_000, 500_000_000)
SAMPLINGS = {
    "`head.sample_rate=0.1`": HeadConfig(sample_rate=0.1),
    "`head.sample_count=1000000`": HeadConfig(sample_count=1_000_000),
}
# Centers and momentum.
KEPT: dict[str, dict[str, Any]] = {
    "float32, float32": {},
    "bfloat16, bfloat16": {"centers_dtype": "bfloat16", "momentum_dtype": "bfloat16"},
    "bfloat16, none": {"centers_dtype": "bfloat16", "momentum": 0.0},
    "float8, none": {"centers_dtype": "float8_e4m3", "momentum": 0.0},
}
NETWORKS = (("iresnet50", 128), ("iresnet50", 256), ("iresnet100", 128), ("iresnet100", 256))

# What such GPUs take, whatever this machine has.
BF16 = Precision(torch.bfloat16, torch.float16, loss_scaling=False, tf32=True, reason="an A100")
RANK = World(
    rank=0,
    world_size=GPUS,
    local_rank=0,
    local_world_size=GPUS,
    device=torch.device("cuda"),
)


def table() -> list[str]:
    """The lines of the table, and of what its head takes beside other networks."""
    numbers = [f"{identities // 10**6}M" for identities in IDENTITIES]
    lines = [
        f"| centers, momentum | classes in a step | {' | '.join(numbers)} |",
        "|---|---|" + "---|" * len(numbers),
    ]
    beside = backbone(*NETWORKS[0])
    for kept, settings in KEPT.items():
        for sampling, head in SAMPLINGS.items():
            config = configured(*NETWORKS[0], replace(head, **settings))
            totals = [
                beside + predict_head(config, RANK, BF16, num_classes=identities).total
                for identities in IDENTITIES
            ]
            lines.append(f"| {kept} | {sampling} | {' | '.join(map(_cell, totals))} |")
    return lines


def backbone(network: str, images: int) -> int:
    """Bytes that a GPU takes for everything but the head."""
    config = configured(network, images, HeadConfig())
    whole = predict(config, RANK, BF16, num_classes=GPUS)
    return whole.total - predict_head(config, RANK, BF16, num_classes=GPUS).total


def configured(network: str, images: int, head: HeadConfig) -> Config:
    """A run of eight ranks with so many images a GPU."""
    return Config(
        data=DataConfig(train="data", global_batch=GPUS * images),
        model=ModelConfig(name=network),
        head=head,
    )


def others() -> str:
    """What other networks and batches take, beyond those of the table."""
    first = backbone(*NETWORKS[0])
    parts = [
        f"{network} with {images} images {(backbone(network, images) - first) / 1e9:.1f} GB"
        for network, images in NETWORKS[1:]
    ]
    return f"Others take more: {', '.join(parts)}."


def _cell(total: float) -> str:
    text = f"{total / 1e9:.0f}"
    return f"**{text}**" if total <= ROOM else text


def main() -> None:
    print("\n".join(table()))
    print(others())


if __name__ == "__main__":
    main()
