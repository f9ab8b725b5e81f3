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
from functools import partial

import torch
from torch import Tensor, nn

from models.checkpointing import blocks_of
from models.normalize import normalize
from training.step.precision import Precision

# Relative, of the gradients: far beyond what 16 bits do to them, far below what wrong code does.
_TOLERANCE = 0.5
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
    itself runs what was compiled for the copy. The copy's gradients are compared with those of the
    uncompiled backbone: torch keeps what it compiled on the disk, and takes it for other machines
    too, where it may compute something else without a word. Evaluate a copy, such as
    `fold_batch_norm` makes, which is not compiled: other batch sizes would be compiled again.

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
            gradients = partial(_gradients, batch=batch, image_size=image_size, precision=precision)
            found = gradients(trial)
            before = _drawn(backbone)
            expected = gradients(copy.deepcopy(backbone))
            if torch.equal(_drawn(backbone), before):
                # With dropout and the like no two runs have the same ones.
                _require_same(found, expected)
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
    return blocks_of(backbone, stages)


def _compile(regions: list[nn.Module]) -> None:
    for region in regions:
        region.compile(fullgraph=True, dynamic=False)


def _gradients(backbone: nn.Module, *, batch: int, image_size: int, precision: Precision) -> Tensor:
    """All gradients of a forward and backward as a training step does them, as (P,) float32."""
    parameters = [p for p in backbone.parameters() if p.requires_grad]
    device = parameters[0].device
    generator = torch.Generator().manual_seed(0)
    shape = (batch, 3, image_size, image_size)
    noise = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    images = noise.to(device).contiguous(memory_format=precision.memory_format)
    with precision.autocast(device):
        embeddings = backbone(normalize(images, precision.compute_dtype))
    # After BatchNorm their squares have a constant sum, and no gradient: each has its own weight.
    weights = torch.randn(embeddings.shape, generator=generator).to(device)
    gradients = torch.autograd.grad((embeddings * weights).sum(), parameters)
    return torch.cat([gradient.flatten().float() for gradient in gradients])


def _drawn(backbone: nn.Module) -> Tensor:
    """The state of the generator that layers like dropout draw from."""
    device = next(backbone.parameters()).device
    if device.type == "cpu":
        return torch.get_rng_state()
    return torch.get_device_module(device).get_rng_state(device)


def _require_same(found: Tensor, expected: Tensor) -> None:
    difference = float((found - expected).norm() / expected.norm())
    if not difference < _TOLERANCE:
        raise ArithmeticError(
            f"what was compiled has other gradients, by {difference:.2g} of their size. It may be "
            "code for another CPU: remove the compiler's cache, which is the folder that "
            "TORCHINDUCTOR_CACHE_DIR names, or torchinductor_USER in the folder for temporary files"
        )
