"""The speeds that others have published beside those that tools/plan.py would predict for them:

    python benchmarks/published_speeds.py

Prints the tables of docs/planning.md, to which a test holds it. Nothing is measured and no GPU is
needed: arcface_torch's head is counted as it stands in benchmarks/baselines.py.
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.resnet50 import IMAGE_SIZE, resnet50
from heads.cost import HeadCost
from models import Architecture
from models.traffic import StepCounts, count_step
from training.planning.cards import CARDS, Fleet
from training.planning.speed import Work, step_seconds

DIM = 512
# Of arcface_torch's head, counted from two sizes and three: bytes for each value of the centers in
# the step, where all are and where a sample is, for each value of all centers with a sample, whose
# gradient is dense, and for each logit. tests/benchmarks holds them.
THEIR_ALL, THEIR_SAMPLED, THEIR_DENSE, THEIR_LOGIT = 158, 114, 61, 190
_THEIR_CALLS = 105
_PCIE_3 = 16e9  # bytes a second each way: the servers of those tables have such slots


class Row(NamedTuple):
    """A published training in 16 bits.

    Attributes:
        card: a key of CARDS.
        batch: images a GPU.
        speed: images/s of all GPUs together, published.
        classes, rate: of arcface_torch's head; 0: ResNet-50 with its 1,000.
        slots: whether the GPUs meet over PCI Express 3.
    """

    source: str
    card: str
    gpus: int
    batch: int
    speed: float
    network: str = "resnet50"
    classes: int = 0
    rate: float = 1.0
    slots: bool = False


_PYTORCH, _MXNET, _XLA = "PyTorch", "MXNet", "TensorFlow XLA"
NVIDIA = [
    Row(_PYTORCH, "v100-16gb", 1, 256, 1200),
    Row(_PYTORCH, "v100-16gb", 8, 256, 8322),
    Row(_MXNET, "v100-16gb", 1, 192, 1376),
    Row(_MXNET, "v100-16gb", 8, 192, 10723),
    Row(_XLA, "v100-16gb", 1, 256, 1270),
    Row(_PYTORCH, "a100", 1, 256, 2470),
    Row(_PYTORCH, "a100", 8, 256, 16621),
    Row(_MXNET, "a100", 1, 256, 2180),
    Row(_MXNET, "a100", 8, 256, 16925),
    Row(_XLA, "a100-40gb", 1, 256, 2375),
    Row(_XLA, "a100-40gb", 8, 256, 17400),
]
_R50, _R100 = "iresnet50", "iresnet100"
_README, _DOCS, _TRAIN = "README", "speed_benchmark.md", "benchmarks/train"
# All rows in 16 bits of networks that are here but those of data parallel heads.
ARCFACE_TORCH = [
    Row("HSTFaceNet's log", "t4", 2, 256, 571, _R50, 93_431, 0.1, slots=True),
    Row(_README, "v100", 8, 128, 5004, _R50, 125_000, 0.1),
    Row(_README, "v100", 8, 128, 4738, _R50, 1_400_000, 0.1),
    Row(_README, "v100", 8, 128, 3975, _R50, 5_500_000, 0.1),
    Row(_README, "v100", 8, 128, 3565, _R50, 8_000_000, 0.1),
    Row(_README, "v100", 8, 128, 2679, _R50, 16_000_000, 0.1),
    Row(_README, "v100", 8, 128, 1855, _R50, 29_000_000, 0.1),
    Row(_README, "v100", 8, 128, 4824, _R50, 125_000),
    Row(_README, "v100", 8, 128, 3043, _R50, 1_400_000),
    Row(_README, "v100", 8, 128, 1389, _R50, 5_500_000),
    Row(_DOCS, "v100", 8, 128, 2271, _R50, 3_000_000),
    Row(_DOCS, "v100", 8, 128, 5299, _R50, 3_000_000, 0.1),
    Row(_TRAIN, "v100", 8, 64, 2576, _R50, 2_000_000),
    Row(_TRAIN, "v100", 8, 64, 4501, _R50, 2_000_000, 0.1),
    Row(_TRAIN, "v100", 8, 128, 2810, _R50, 2_000_000),
    Row(_TRAIN, "v100", 8, 128, 5430, _R50, 2_000_000, 0.1),
    Row(_TRAIN, "v100", 8, 256, 6095, _R50, 2_000_000, 0.1),
    Row(_TRAIN, "v100", 8, 64, 3889, _R50, 618_000),
    Row(_TRAIN, "v100", 8, 128, 4322, _R50, 618_000),
    Row(_TRAIN, "v100", 8, 256, 4921, _R50, 618_000),
    Row(_TRAIN, "a10", 8, 128, 3360, _R50, 618_000, slots=True),
    Row(_TRAIN, "a10", 8, 256, 3940, _R50, 618_000, slots=True),
    Row(_TRAIN, "a10", 8, 128, 2210, _R100, 618_000, slots=True),
    Row(_TRAIN, "a30", 8, 128, 2640, _R50, 618_000, slots=True),
    Row(_TRAIN, "a30", 8, 256, 2910, _R50, 618_000, slots=True),
    Row(_TRAIN, "a30", 8, 128, 1680, _R100, 618_000, slots=True),
    Row(_TRAIN, "3090", 8, 128, 2810, _R50, 2_000_000, slots=True),
    Row(_TRAIN, "3090", 8, 128, 4220, _R50, 2_000_000, 0.1, slots=True),
    Row(_TRAIN, "3090", 8, 256, 5330, _R50, 2_000_000, 0.1, slots=True),
    Row(_TRAIN, "3090", 8, 64, 2610, _R50, 618_000, slots=True),
    Row(_TRAIN, "3090", 8, 128, 3790, _R50, 618_000, slots=True),
    Row(_TRAIN, "3090", 8, 256, 4680, _R50, 618_000, slots=True),
    Row(_TRAIN, "a100", 8, 128, 5400, _R50, 618_000, slots=True),
    Row(_TRAIN, "a100", 8, 256, 7780, _R50, 618_000, slots=True),
    Row(_TRAIN, "a100", 8, 1280, 9400, _R50, 618_000, slots=True),
    Row(_TRAIN, "a100", 8, 128, 3700, _R100, 618_000, slots=True),
    Row(_TRAIN, "a100", 8, 128, 3480, _R100, 2_000_000, slots=True),
    Row(_TRAIN, "a100", 8, 128, 2700, _R50, 50_000_000, 0.1, slots=True),
    Row(_TRAIN, "a100", 8, 128, 2170, _R50, 70_000_000, 0.1, slots=True),
    Row(_TRAIN, "a100", 8, 128, 1080, _R50, 80_000_000, 0.1, slots=True),
]


class _Counted(NamedTuple):
    counts: StepCounts  # for each image
    parameters: int


@cache
def _counted(network: str) -> _Counted:
    with torch.device("meta"):
        built: nn.Module = resnet50() if network == "resnet50" else Architecture(network).create()
    size = IMAGE_SIZE if network == "resnet50" else Architecture(network).image_size
    parameters = sum(parameter.numel() for parameter in built.parameters())
    return _Counted(count_step(built.train(), size), parameters)


def their_head(row: Row) -> HeadCost:
    """Of a step of arcface_torch's head on one rank, as HeadCost has it; 0 of ResNet-50."""
    if not row.classes:
        return HeadCost(0, 0, 0, 0, 0)
    images, local = row.gpus * row.batch, -(-row.classes // row.gpus)
    size = int(row.rate * local)
    values, logits = size * DIM, size * images
    rows = THEIR_ALL * values
    if row.rate < 1:
        rows = THEIR_SAMPLED * values + THEIR_DENSE * local * DIM
    return HeadCost(
        flops=3 * 2 * logits * DIM,  # cosines, and two gradients
        bytes=rows + THEIR_LOGIT * logits,
        launches=_THEIR_CALLS,
        gathered=row.batch * (DIM * 4 + 8),
        scattered=images * DIM * 4,
    )


def counted(row: Row) -> float:
    """Images/s of all GPUs together, as training.planning.speed counts them."""
    card = CARDS[row.card]
    if row.slots:
        card = replace(card, link=_PCIE_3)
    network = _counted(row.network)
    work = Work(
        flops=row.batch * network.counts.flops,
        bytes=row.batch * network.counts.bytes.total(),
        launches=network.counts.calls,
        updated=network.parameters,
        # NVIDIA's travel in 16 bits, those of arcface_torch's tables in 32.
        averaged=(4 if row.classes else 2) * network.parameters,
        head=their_head(row),
    )
    return row.gpus * row.batch / step_seconds(work, Fleet(card, row.gpus, a_machine=16)).total


def reached(rows: list[Row]) -> list[float]:
    """Published over counted."""
    return [row.speed / counted(row) for row in rows]


def table(rows: list[Row]) -> list[str]:
    """Its lines, a number for all GPUs together."""
    theirs = rows is ARCFACE_TORCH
    more = ("network", "identities", "rate") if theirs else ()
    columns = ("published by", "GPUs", "images a GPU", *more, "counted", "published", "ratio")
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for row, part in zip(rows, reached(rows)):
        head = (row.network, f"{row.classes:,}", f"{row.rate:g}") if theirs else ()
        cells = (
            *(row.source, f"{row.gpus} × {CARDS[row.card].name}", str(row.batch), *head),
            *(f"{row.speed / part:,.0f}", f"{row.speed:,.0f}", f"{part:.2f}"),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def summary() -> list[str]:
    """Lowest, middle and highest ratio of each table."""
    lines = []
    for name, rows in (("NVIDIA's ResNet-50", NVIDIA), ("arcface_torch", ARCFACE_TORCH)):
        parts = reached(rows)
        lines.append(
            f"{name}: {min(parts):.2f} to {max(parts):.2f} of the count, "
            f"{statistics.median(parts):.2f} in the middle of {len(parts)}."
        )
    return lines


def card_table() -> list[str]:
    """Peaks as plans take them."""
    lines = [
        "| `--gpu` | card | TFLOP/s | GB/s | GB | link, GB/s | host, GB/s |",
        "|---|---|" + "---|" * 5,
    ]
    for key, card in CARDS.items():
        numbers = (card.flops / 1e12, *(size / 1e9 for size in (card.bandwidth, card.memory)))
        links = (card.link / 1e9, card.host / 1e9)
        cells = (f"`{key}`", card.name, *(f"{number:,.10g}" for number in (*numbers, *links)))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    print("\n".join(card_table()), end="\n\n")
    for rows in (NVIDIA, ARCFACE_TORCH):
        print("\n".join(table(rows)), end="\n\n")
    print("\n".join(summary()))


if __name__ == "__main__":
    main()
