"""A model that a command line names, with how it is to be run."""

from __future__ import annotations

import argparse
from pathlib import Path

from evaluation.features import Embedder
from pipeline.ahead import cores
from training.command import whole_number
from training.config import load_config
from training.distributed import World
from training.frozen.model import OpenedModel, open_model
from training.step.precision import choose_precision


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """What `open_named_model` takes."""
    add = parser.add_argument
    add(
        "--onnx-input",
        default="",
        metavar="WORDS",
        help="how an .onnx file wants its images, where it does not say: 112,rgb,-1..1",
    )
    add("--config", type=Path, help="a configuration file that registers a run's own network")
    add("--no-flip", action="store_true", help="without the mirror images' embeddings")
    add("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--batch", type=whole_number(1, 1 << 16), default=128, help="images at a time")


def open_named_model(
    model: str, arguments: argparse.Namespace, world: World
) -> tuple[OpenedModel, Embedder]:
    """Open a model as the options of `add_model_options` say.

    Raises UserError as `open_model` does.
    """
    if arguments.config:
        load_config(arguments.config)
    precision = choose_precision(world.device, arguments.precision)
    precision.apply()
    opened = open_model(
        model, device=world.device, dtype=precision.compute_dtype, words=arguments.onnx_input
    )
    embedder = opened.embedder(
        world.device,
        batch_size=arguments.batch,
        threads=max(1, cores() // world.local_world_size),
        rank=world.rank,
        world_size=world.world_size,
    )
    return opened, embedder
