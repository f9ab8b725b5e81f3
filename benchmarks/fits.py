"""How many identities fit on eight GPUs of 80 GB, as it is predicted:  python benchmarks/fits.py

Prints the table of docs/heads.md, to which a test holds it. Nothing is measured and no GPU is
needed: the prediction is the one that every run prints before its first step.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from training.config import Config, DataConfig, HeadConfig, ModelConfig
from training.distributed import World
from training.planning.memory import predict, predict_head
from training.planning.row_places import place_rows
from training.step.precision import Precision

GPUS = 8
# Bytes of a GPU, less what CUDA and an allocator take beside the prediction; of the host.
ROOM, HOST_ROOM = 76e9, 2e12
IDENTITIES = (10_000_000, 50_000_000, 80_000_000, 140_000_000, 500_000_000)
SAMPLINGS = {
    "rate 0.1": HeadConfig(sample_rate=0.1),
    "1,000,000": HeadConfig(sample_count=1_000_000),
}
# Centers and momentum.
KEPT: dict[str, dict[str, Any]] = {
    "float32, float32": {},
    "bfloat16, bfloat16": {"centers_dtype": "bfloat16", "momentum_dtype": "bfloat16"},
    "bfloat16, none": {"centers_dtype": "bfloat16", "momentum": 0.0},
    "float8, none": {"centers_dtype": "float8_e4m3", "momentum": 0.0},
}
PLACES: tuple[Literal["device", "host"], ...] = ("device", "host")
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
    """Its lines: of the first network."""
    numbers = [f"{identities // 10**6}M" for identities in IDENTITIES]
    lines = [
        f"| centers, momentum | place | classes in a step | {' | '.join(numbers)} |",
        "|---|---|---|" + "---|" * len(numbers),
    ]
    beside = backbone(*NETWORKS[0])
    for place in PLACES:
        for kept, settings in KEPT.items():
            for sampling, head in SAMPLINGS.items():
                asked = replace(head, place=place, **settings)
                cells = [cell(beside, asked, identities) for identities in IDENTITIES]
                lines.append(f"| {kept} | {place} | {sampling} | {' | '.join(cells)} |")
    return lines


def cell(beside: int, asked: HeadConfig, identities: int) -> str:
    """GB of a GPU, and of the machine's memory where there is any; bold where it fits."""
    config = configured(*NETWORKS[0], asked)
    head = predict_head(config, RANK, BF16, num_classes=identities)
    rows = place_rows(head, place=asked.place, prefetch=asked.prefetch, on_cpu=False)
    gpu = beside + head.step + rows.centers + rows.momentum + rows.fetched
    host = GPUS * rows.host
    text = f"{gpu / 1e9:.0f}" + (f" + {host / 1e9:.0f}" if host else "")
    return f"**{text}**" if gpu <= ROOM and host <= HOST_ROOM else text


def backbone(network: str, images: int) -> int:
    """Bytes that a GPU takes for everything but the head."""
    config = configured(network, images, HeadConfig())
    whole = predict(config, RANK, BF16, num_classes=GPUS)
    return whole.total - whole.centers - whole.momentum - whole.transients


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


def main() -> None:
    print("\n".join(table()))
    print(others())


if __name__ == "__main__":
    main()
