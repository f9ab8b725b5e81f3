"""What each recipe costs an image, on CPUs:

    python benchmarks/augment_cost.py

Graphs that decode and then apply one recipe run in turn in one process, a few batches each; the
cost of a recipe is the median, over the rounds, of what its graph takes longer than the one that
only decodes. It is given in wall time and in the time of all threads, which other programs on the
machine disturb less. Compared are: the arcface recipe with every branch computed for every image
and blended, as arcface_torch does it, by the very same operators; and geometry and light by the
DALI operators that one would take first, warp_affine and color_twist. Results go to
benchmarks/results/.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness import about_cpu, save, show
from pipeline import dali
from pipeline.augment import RECIPES, Augmentation, Draw, Node, Recipe
from pipeline.augment.color import without_color
from pipeline.augment.geometry import lower_resolution
from pipeline.augment.quality import blur
from synthetic import encode_jpeg, render

SIZE = 112
AHEAD = 2  # batches: as in training
# Of every face, for the recipe that hides what lies between them.
LANDMARKS = np.array([[38, 51], [73, 52], [56, 72], [41, 92], [70, 93]], np.float32)
BLENDED = "arcface, all computed and blended"
COMPARED = [("arcface", BLENDED), ("geometry", "warp_affine"), ("light", "color_twist")]


class Cost(NamedTuple):
    """Microseconds an image beyond decoding."""

    wall: float
    threads: float


def blend(taken: Node, changed: Node, images: Node) -> Node:
    """What arcface_torch does in place of a branch: in uint8, each image times 1 or 0."""
    return taken * changed + (taken ^ True) * images


def _blended_arcface(images: Node, **drawn: Node) -> Node:
    resolution = {name: drawn[name] for name in ("small", "whole")}
    images = blend(drawn["resized"], lower_resolution(images, **resolution), images)
    images = blend(drawn["blurred"], blur(images, drawn["kernel"]), images)
    colored = dali.fn.hsv(images, hue=drawn["hue"], saturation=drawn["saturation"])
    images = blend(drawn["colored"], colored, images)
    return blend(drawn["grey"], without_color(images), images)


def _warp_affine(images: Node, matrix: Node) -> Node:
    return dali.fn.warp_affine(
        images, matrix=matrix, fill_value=0, interp_type=dali.types.INTERP_LINEAR
    )


def _color_twist(images: Node, **factors: Node) -> Node:
    return dali.fn.color_twist(images, **factors)


EXTRA = {
    BLENDED: Recipe(RECIPES["arcface"].draw, _blended_arcface),
    "warp_affine": Recipe(RECIPES["geometry"].draw, _warp_affine),
    "color_twist": Recipe(RECIPES["light"].draw, _color_twist),
}


def build(
    recipe: str | None, encoded: list[np.ndarray], *, batch: int, threads: int
) -> dali.Pipeline:
    """A graph that decodes and applies a recipe, or only decodes."""
    augmentation = Augmentation([recipe] if recipe else [])
    arguments = augmentation.argument_types
    steps = count()

    def source() -> tuple:
        at = np.arange(batch) + next(steps) * batch
        draw = Draw(at, seed=0, epoch=0, size=SIZE)
        draw.columns = {"landmarks": np.repeat(LANDMARKS[None], batch, axis=0)}
        return [encoded[i % len(encoded)] for i in at], *augmentation.arrays(draw)

    @dali.pipeline_def(enable_conditionals=True)
    def graph() -> object:
        inputs, *nodes = dali.fn.external_source(
            source=source,
            num_outputs=1 + len(arguments),
            batch=True,
            dtype=[dali.types.UINT8, *(dtype for dtype, _ in arguments)],
            ndim=[1, *(ndim for _, ndim in arguments)],
        )
        images = dali.fn.decoders.image(inputs, device="cpu", output_type=dali.types.RGB)
        return augmentation(images, nodes)

    pipeline = graph(
        batch_size=batch,
        num_threads=threads,
        device_id=None,
        prefetch_queue_depth=AHEAD,
        exec_dynamic=True,
    )
    pipeline.build()
    return pipeline


def seconds(pipeline: dali.Pipeline, batches: int) -> tuple[float, float]:
    """Of the wall's clock and of all threads, with nothing left in flight for the next graph."""
    begin = time.perf_counter(), time.process_time()
    for _ in range(AHEAD):
        pipeline.schedule_run()
    for done in range(batches):
        pipeline.outputs()
        if done < batches - AHEAD:
            pipeline.schedule_run()
    return time.perf_counter() - begin[0], time.process_time() - begin[1]


def measure(*, batch: int, threads: int, batches: int, rounds: int) -> tuple[Cost, dict[str, Cost]]:
    """The cost of decoding, and of each recipe beyond it."""
    encoded = [np.frombuffer(encode_jpeg(render(i, 0)), np.uint8) for i in range(batch)]
    cases: list[str | None] = [None, *RECIPES]
    pipelines = {name: build(name, encoded, batch=batch, threads=threads) for name in cases}
    taken: dict[str | None, list[tuple[float, float]]] = {name: [] for name in cases}
    for turn in range(rounds + 1):  # one to warm up
        # What ran before leaves its mark on caches: no graph always follows the same one.
        for name in np.random.default_rng(turn).permutation(np.array(cases, object)):
            spent = seconds(pipelines[name], batches)
            if turn:
                taken[name].append(spent)
    micro = 1e6 / (batches * batch)
    decode = Cost(*(statistics.median(one[k] for one in taken[None]) * micro for k in range(2)))
    return decode, {
        name: Cost(
            *(
                statistics.median(a[k] - b[k] for a, b in zip(spent, taken[None])) * micro
                for k in range(2)
            )
        )
        for name, spent in taken.items()
        if name
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0].rstrip(":"))
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batches", type=int, default=8, help="of each graph in a round")
    parser.add_argument("--rounds", type=int, default=9)
    settings = vars(parser.parse_args())
    RECIPES.update(EXTRA)
    decode, costs = measure(**settings)
    ratios = {mine: _ratio(costs[other], costs[mine]) for mine, other in COMPARED}
    _print(decode, costs, ratios)
    compared = {mine: {"other": other, **ratios[mine]._asdict()} for mine, other in COMPARED}
    save(
        "augment_cost",
        about_cpu() | settings,
        decode_us=decode._asdict(),
        recipes_us={name: cost._asdict() for name, cost in costs.items()},
        cheaper_than=compared,
    )


def _ratio(other: Cost, mine: Cost) -> Cost:
    return Cost(*(round(a / b, 2) for a, b in zip(other, mine)))


def _print(decode: Cost, costs: dict[str, Cost], ratios: dict[str, Cost]) -> None:
    rows = [
        (
            name,
            f"{cost.wall:.0f}",
            f"{cost.threads:.0f}",
            "{} × (threads {} ×)".format(*ratios[name]) if name in ratios else "",
        )
        for name, cost in costs.items()
    ]
    rows.append(("decoding itself", f"{decode.wall:.0f}", f"{decode.threads:.0f}", ""))
    columns = ("recipe", "wall", "all threads", "cheaper than the other way")
    show(columns, rows, title="microseconds an image beyond decoding")


if __name__ == "__main__":
    main()
