"""How many identities fit on eight GPUs of 80 GB, as it is predicted:  python benchmarks/fits.py

Prints the table of docs/heads.md, to which a test holds it. Nothing is measured and no GPU is
needed: the prediction is the one that every run prints before its first step.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from training.config import Config, DataConfig, HeadConfig, ModelConfig
from training.distributed import World
from training.planning.cards import CARDS, HOST_ROOM
from training.planning.memory import Prediction, predict, with_head
from training.planning.plan import KEPT
from training.step.precision import Precision

GPUS = 8
ROOM = CARDS["a100"].room
IDENTITIES = (10_000_000, 50_000_000, 80_000_000, 140_000_000, 500_000_000)
SAMPLINGS = {
    "rate 0.1": HeadConfig(sample_rate=0.1),
    "1,000,000": HeadConfig(sample_count=1_000_000),
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
    base = without_head(*NETWORKS[0])
    for place in PLACES:
        for kept, settings in KEPT.items():
            for sampling, head in SAMPLINGS.items():
                asked = replace(head, place=place, **settings)
                cells = [cell(base, asked, identities) for identities in IDENTITIES]
                lines.append(f"| {kept} | {place} | {sampling} | {' | '.join(cells)} |")
    return lines


def cell(base: Prediction, asked: HeadConfig, identities: int) -> str:
    """GB of a GPU, and of the machine's memory where there is any; bold where it fits."""
    config = configured(*NETWORKS[0], asked)
    memory = with_head(base, config, RANK, BF16, num_classes=identities)
    host = GPUS * memory.host
    text = f"{memory.total / 1e9:.0f}" + (f" + {host / 1e9:.0f}" if host else "")
    return f"**{text}**" if memory.total <= ROOM and host <= HOST_ROOM else text


def without_head(network: str, images: int) -> Prediction:
    """What a GPU takes beside a head of next to no classes."""
    return predict(configured(network, images, HeadConfig()), RANK, BF16, num_classes=GPUS)


def configured(network: str, images: int, head: HeadConfig) -> Config:
    """A run of eight ranks with so many images a GPU."""
    return Config(
        data=DataConfig(train="data", global_batch=GPUS * images),
        model=ModelConfig(name=network),
        head=head,
    )


def others() -> str:
    """What other networks and batches take, beyond those of the table."""
    first, *rest = (_beside_head(without_head(*asked)) for asked in NETWORKS)
    parts = [
        f"{network} with {images} images {(size - first) / 1e9:.1f} GB"
        for (network, images), size in zip(NETWORKS[1:], rest)
    ]
    return f"Others take more: {', '.join(parts)}."


def _beside_head(memory: Prediction) -> int:
    return memory.total - memory.centers - memory.momentum - memory.transients


def main() -> None:
    print("\n".join(table()))
    print(others())


if __name__ == "__main__":
    main()
