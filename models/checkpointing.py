"""Activation checkpointing (https://arxiv.org/abs/1604.06174): blocks that keep their inputs alone.

What else backward needs of a block is computed again there: less memory for a third more work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def blocks_of(network: nn.Module, stages: Sequence[str]) -> list[nn.Module]:
    """The children of the submodules that are called so."""
    return [block for name in stages for block in network.get_submodule(name).children()]


def checkpoint_blocks(network: nn.Module, stages: Sequence[str]) -> None:
    """Let each block of these stages run again in backward instead of keeping what it computed.

    Embeddings, gradients and BatchNorm's statistics stay the same to the bit; where a block draws
    random numbers, it draws the same ones again.

    Args:
        network: changed in place; names and tensors stay, and so do copies what they are.
        stages: names of its submodules whose children are blocks.
    """
    kinds: dict[type, type] = {}
    for block in blocks_of(network, stages):
        kind = type(block)
        # Its class and not its `forward`, which would run the original in a copy, nor a module
        # around it, which would be a part of all names.
        block.__class__ = kinds[kind] = kinds.get(kind) or _checkpointed(kind)


def _checkpointed(kind: type[nn.Module]) -> type[nn.Module]:
    def forward(self: nn.Module, *inputs: Any) -> Any:
        if not (self.training and torch.is_grad_enabled()):
            return kind.forward(self, *inputs)

        def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
            return nullcontext(), _fixed_statistics(self)

        def run(*inputs: Any) -> Any:
            return kind.forward(self, *inputs)

        return checkpoint(run, *inputs, use_reentrant=False, context_fn=contexts)

    return type(kind.__name__, (kind,), {"forward": forward})


@contextmanager
def _fixed_statistics(block: nn.Module) -> Iterator[None]:
    """BatchNorm normalizes by the batch and leaves its running statistics as they are."""
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before):
            norm.momentum, norm.num_batches_tracked = momentum, count
