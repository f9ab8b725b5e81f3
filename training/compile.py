"""Compiling the backbone, or saying why not: tried before training, never in the middle of it.

Alone, a network is compiled whole, which is fastest. Where ranks average gradients, each block is
compiled on its own, so that gradients reach DistributedDataParallel block by block instead of all
at the end; blocks of one shape then share their code.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Sequence

import torch
from torch import nn

from models.normalize import normalize
from training.precision import Precision

# Torch gives up on a function after 8 shapes: just as many as the blocks of one network have.
_SHAPES = 64


def compile_backbone(
    backbone: nn.Module,
    *,
    stages: Sequence[str],
    alone: bool,
    batch: int,
    image_size: int,
    precision: Precision,
) -> str:
    """Compile the backbone in place for training, or leave it and warn.

    Compilers fail late, at the first forward or backward. So a copy of the backbone takes both
    first: statistics, gradients and the names in the state dict stay as they are, and the backbone
    itself runs what was compiled for the copy. Evaluate a copy, such as `fold_batch_norm` makes,
    which is not compiled: other batch sizes would be compiled anew.

    Args:
        backbone: on its device, in train mode, not yet wrapped for several ranks.
        stages: names of its submodules whose children are blocks.
        alone: whether there are no other ranks.
        batch: images a rank and step; training with another number compiles again.
        image_size: their height and width in pixels.

    Returns:
        A sentence for the log: what was compiled and how long it took, or that nothing was.
    """
    start = time.perf_counter()
    trial = copy.deepcopy(backbone)
    try:
        with torch._dynamo.config.patch({_limit_name(): _SHAPES}):
            _compile(_regions(trial, stages, alone))
            _rehearse(trial, batch=batch, image_size=image_size, precision=precision)
    except Exception as error:  # from compilers of all kinds, and none is worth losing the run
        reason = " ".join(str(error).partition("\n\n")[0].split()) or type(error).__name__
        logging.warning("model.compile: the backbone runs uncompiled, because %s", reason)
        return "not compiled, see the warning"
    regions = _regions(backbone, stages, alone)
    _compile(regions)
    parts = "whole" if alone else f"{len(regions)} blocks"
    return f"compiled {parts} in {time.perf_counter() - start:.0f} s"


def _limit_name() -> str:
    """What torch 2.7 and later, and torch before that, call it."""
    names = ("recompile_limit", "cache_size_limit")
    return next(name for name in names if hasattr(torch._dynamo.config, name))


def _regions(backbone: nn.Module, stages: Sequence[str], alone: bool) -> list[nn.Module]:
    """What is compiled as one: the network, or the blocks of its stages where it has any."""
    if alone or not stages:
        return [backbone]
    return [block for name in stages for block in backbone.get_submodule(name).children()]


def _compile(regions: list[nn.Module]) -> None:
    for region in regions:
        region.compile(fullgraph=True, dynamic=False)


def _rehearse(backbone: nn.Module, *, batch: int, image_size: int, precision: Precision) -> None:
    """One forward and backward as a training step does them."""
    parameters = [p for p in backbone.parameters() if p.requires_grad]
    shape = (batch, 3, image_size, image_size)
    images = torch.zeros(shape, dtype=torch.uint8, device=parameters[0].device)
    images = images.contiguous(memory_format=precision.memory_format)
    with precision.autocast(images.device):
        embeddings = backbone(normalize(images, precision.compute_dtype))
    torch.autograd.grad(embeddings.square().mean(), parameters)
