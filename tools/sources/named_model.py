"""Models that a command line names, with how they are to be run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from evaluation.features import Embedder
from facestream import UserError
from pipeline.ahead import cores
from training.command import whole_number
from training.config import load_config
from training.distributed import World
from training.frozen.model import ONNX, OpenedModel, open_model
from training.step.precision import choose_precision


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """What `open_named_model` takes."""
    add = parser.add_argument
    add(
        "--onnx-input",
        action="append",
        default=[],
        metavar="WORDS",
        help="how an .onnx file wants its images, where it does not say: 112,rgb,-1..1 or "
        "112,rgb,0..1,imagenet; of several files once for all, or once for each",
    )
    add("--config", type=Path, help="a configuration file that registers a run's own network")
    add("--no-flip", action="store_true", help="without the mirror images' embeddings")
    add("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--batch", type=whole_number(1, 1 << 16), default=128, help="images at a time")


def add_judging_options(parser: argparse.ArgumentParser) -> None:
    """Of those who judge models by sets: what is drawn, and what becomes of damaged images."""
    add = parser.add_argument
    add("--skip-damaged", action="store_true", help="leave damaged images out, and say how many")
    add(
        "--draws",
        type=whole_number(0, 1_000_000),
        default=1000,
        help="of the bootstrap for intervals (default 1000; 0 for no intervals)",
    )
    add("--seed", type=whole_number(0, 1 << 31), default=0, help="of all that is drawn (default 0)")


def open_named_model(
    model: str, arguments: argparse.Namespace, world: World
) -> tuple[OpenedModel, Embedder]:
    """Open a model as the options of `add_model_options` say.

    Raises UserError as `open_model` does, and for an --onnx-input that goes with no file.
    """
    [opened] = open_named_models([model], arguments, world)
    return opened


def open_named_models(
    models: Sequence[str], arguments: argparse.Namespace, world: World
) -> list[tuple[OpenedModel, Embedder]]:
    """The same of several; see `open_named_model`."""
    if arguments.config:
        load_config(arguments.config)
    precision = choose_precision(world.device, arguments.precision)
    precision.apply()
    found = []
    for model, words in zip(models, _words(models, arguments.onnx_input)):
        opened = open_model(model, device=world.device, dtype=precision.compute_dtype, words=words)
        embedder = opened.embedder(
            world.device,
            batch_size=arguments.batch,
            threads=max(1, cores() // world.local_world_size),
            rank=world.rank,
            world_size=world.world_size,
        )
        found.append((opened, embedder))
    return found


def _words(models: Sequence[str], words: Sequence[str]) -> list[str]:
    """What --onnx-input says of each model."""
    files = [model for model in models if model.endswith(ONNX)]
    if len(words) > 1 and len(words) != len(files):
        raise UserError(
            f"--onnx-input is given {len(words)} times for {len(files)} .onnx files: give it once "
            "for all of them, or once for each, in their order"
        )
    if words and not files:
        raise UserError("--onnx-input is given, but no model is an .onnx file: leave it out")
    each = iter(words if len(words) == len(files) else list(words or [""]) * len(files))
    return [next(each) if model in files else "" for model in models]
