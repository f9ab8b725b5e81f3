"""What a run would take on GPUs that need not be here: memory, wire, speed, hours:

    python tools/plan.py --classes 2_000_000 --model iresnet50 --batch 256 --gpus 2 --gpu t4

More settings can follow as section.key=value. Nothing is measured and no GPU is needed: memory is
what a run predicts of itself, speed is counted, with the error that published runs give it.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table

from heads.rows.stored import dtype_name
from training.command import command, whole_number
from training.config import Config, DataConfig, ModelConfig, override
from training.planning.cards import CARDS, HOST_ROOM, Fleet, find_card
from training.planning.dry_run import memory_table
from training.planning.out_of_memory import less_memory
from training.planning.plan import Choice, RunPlan
from training.planning.speed import REACHED, Seconds, sent
from training.reporting.forecast import duration

KAGGLE_HOURS = 11.5  # of a session that leaves half an hour to save
_KAGGLE = ("t4", 2)
_WIDTH = 136  # letters: the tables are folded to no fewer


def report(plan: RunPlan, *, images: int) -> Iterable[str | Table]:
    """What there is to say, in its order; images: of an epoch."""
    config, fleet, memory = plan.config, plan.fleet, plan.memory
    batch = config.data.global_batch
    yield (
        f"{plan.num_classes:,} identities, {config.architecture}, {batch // fleet.count:,} images "
        f"on each of {fleet.count:,} × {fleet.card.name}: {batch:,} a step"
    )
    yield f"precision: {dtype_name(plan.precision.compute_dtype)}, {plan.precision.reason}"
    yield "Nothing here is measured. Memory is what a run predicts of itself before its first step:"
    yield memory_table(memory, fleet.card.room)
    choices = list(plan.choices())
    yield from _what_fits(plan, choices)
    seconds = plan.seconds(config.head)
    yield _step_table(plan, seconds)
    yield from _speed(plan, seconds, images)
    yield _choice_table(plan, choices)


def _what_fits(plan: RunPlan, choices: list[Choice]) -> Iterable[str]:
    fits = plan.fits(plan.memory)
    yield "fits" if fits else f"does not fit. {less_memory(plan.config, plan.memory)}"
    batch = plan.largest_batch()
    yield f"largest batch: {f'{batch:,} images a GPU' if batch else 'none'} with these settings"
    for sampling, group in groupby(choices, key=_sampling):
        fitting = [choice for choice in group if choice.fits]
        if not fitting:
            yield f"sample {sampling}: no state of the centers fits"
            continue
        smallest = min(fitting, key=lambda choice: (choice.memory.total, choice.host, choice.disk))
        yield f"sample {sampling}: first that fits {_way(fitting[0])}, smallest {_way(smallest)}"


def _sampling(choice: Choice) -> str:
    return choice.sampling


def _way(choice: Choice) -> str:
    return f"{choice.kept} on {choice.place} ({_gb(choice.memory.total)} GB)"


def _step_table(plan: RunPlan, seconds: Seconds) -> Table:
    work, card = plan.work(plan.config.head), plan.fleet.card
    travels = sent(work, plan.fleet.count)
    wire = f"at {plan.fleet.wire / 1e9:g} GB/s each way"
    rows = {
        "backbone_products": f"{work.flops / 1e12:,.2f} TFLOP at {card.flops / 1e12:g} TFLOP/s",
        "backbone_memory": f"{work.bytes / 1e9:,.1f} GB at {card.bandwidth / 1e9:,g} GB/s, update",
        "head_products": f"{work.head.flops / 1e12:,.2f} TFLOP",
        "head_memory": f"{work.head.bytes / 1e9:,.1f} GB",
        "launches": f"{work.launches + work.head.launches:,}",
        "gradients": f"{travels.gradients / 1e6:,.1f} MB sent {wire}, the most beside backward",
        "head_exchange": f"{travels.head / 1e6:,.1f} MB sent",
        "fetch": f"{work.fetched / 1e6:,.0f} MB each way, where a step does not hide it",
    }
    table = Table("a step of a rank", "counted", Column("ms", justify="right"), box=SIMPLE_HEAD)
    for name, text in rows.items():
        table.add_row(name.replace("_", " "), text, f"{1e3 * getattr(seconds, name):,.1f}")
    table.add_section()
    image = plan.backbone
    an_image = f"an image: {image.flops / 1e9:,.1f} GFLOP, {image.bytes.total() / 1e6:,.0f} MB"
    table.add_row("total", an_image, f"{1e3 * seconds.total:,.1f}")
    return table


def _speed(plan: RunPlan, seconds: Seconds, images: int) -> Iterable[str]:
    counted = plan.images_per_s(seconds)
    slow, quick = REACHED.usual * counted, REACHED.tuned * counted
    yield (
        f"speed: {_rate(slow)} to {_rate(quick)} images/s predicted, {_rate(counted)} counted. "
        f"Published runs had {REACHED.usual} (arcface_torch, in the middle) to {REACHED.tuned} "
        f"(NVIDIA's ResNet-50) of the count, all of them {REACHED.lowest} to {REACHED.highest}: "
        "docs/planning.md"
    )
    if plan.config.head.place == "disk":
        yield "head.place=disk: the disk's time is not in it"
    hours = [images / speed / 3600 for speed in (quick, slow)]
    sessions = ""
    if plan.fleet.card is CARDS[_KAGGLE[0]] and plan.fleet.count <= _KAGGLE[1]:
        few, many = (math.ceil(one / KAGGLE_HOURS) for one in hours)
        count = f"{few}" if few == many else f"{few} to {many}"
        sessions = f", Kaggle sessions of {KAGGLE_HOURS} h: {count}"
    times = " to ".join(duration(3600 * one) for one in hours)
    yield f"an epoch of {images:,} images: {times}{sessions}"


def _choice_table(plan: RunPlan, choices: list[Choice]) -> Table:
    right = ("centers", "momentum", "fetched", "step", "GPU", "host", "disk", "images/s")
    table = Table(
        *(Column(name, no_wrap=True) for name in ("sample", "centers, momentum", "place")),
        *(Column(name, justify="right", no_wrap=True) for name in right),
        "fits",
        title="GB of a GPU, of a machine's memory and disk, and images/s counted",
        box=SIMPLE_HEAD,
    )
    for sampling, group in groupby(choices, key=_sampling):
        table.add_section()
        for choice in group:
            memory, seconds = choice.memory, choice.seconds
            step = (memory.centers, memory.momentum, memory.fetched, memory.transients)
            table.add_row(
                *(sampling, choice.kept, choice.place),
                *map(_gb, (*step, memory.total, choice.host, choice.disk)),
                "?" if seconds is None else _rate(plan.images_per_s(seconds)),
                "yes" if choice.fits else "no",
            )
    return table


def _rate(images_per_s: float) -> str:
    return f"{images_per_s:,.0f}" if images_per_s >= 10 else f"{images_per_s:.2g}"


def _gb(size: int) -> str:
    return f"{size / 1e9:,.1f}" if size else "–"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0].rstrip(":"))
    parser.add_argument("--classes", type=whole_number(2, 10**9), required=True, help="identities")
    parser.add_argument("--model", default="iresnet50", help="as `python -m models` lists them")
    parser.add_argument(
        "--batch", type=whole_number(1, 1 << 14), default=128, help="images a GPU (128)"
    )
    parser.add_argument("--gpu", required=True, help=f"one of {', '.join(CARDS)}")
    parser.add_argument("--gpus", type=whole_number(1, 1024), default=1, help="of all machines (1)")
    parser.add_argument(
        "--gpus-per-machine", type=whole_number(1, 16), default=8, help="at most (8)"
    )
    parser.add_argument(
        "--network",
        type=whole_number(1, 10_000),
        default=100,
        metavar="GBIT/S",
        help="between machines, of one, each way (100)",
    )
    parser.add_argument(
        "--host-gb",
        type=whole_number(1, 10**6),
        default=int(HOST_ROOM / 1e9),
        help="memory of a machine that its ranks may take (2,000)",
    )
    parser.add_argument(
        "--images", type=whole_number(1, 10**11), default=10**6, help="of an epoch (1,000,000)"
    )
    # Without a default argparse calls them required.
    parser.add_argument("settings", nargs="*", default=[], metavar="section.key=value")
    arguments = parser.parse_intermixed_args()
    with command("plan"):
        fleet = Fleet(
            find_card(arguments.gpu),
            arguments.gpus,
            a_machine=arguments.gpus_per_machine,
            network=arguments.network * 1e9 / 8,
            host_room=arguments.host_gb * 1e9,
        )
        config = Config(
            data=DataConfig(train="data", global_batch=arguments.batch * arguments.gpus),
            model=ModelConfig(name=arguments.model),
        )
        plan = RunPlan(override(config, arguments.settings), fleet, arguments.classes)
        console = Console(highlight=False, soft_wrap=True)
        console.width = max(console.width, _WIDTH)
        for part in report(plan, images=arguments.images):
            console.print(part)


if __name__ == "__main__":
    main()
