"""What a head keeps from step to step: its buffers, and how they begin."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from heads.learned import keep_learned
from heads.rows.buffers import CENTERS, kept_rows, register_rows, stored_rows
from heads.rows.initial import begin_rows
from heads.rows.placement import Placement
from heads.rows.stored import Stored
from heads.shard_state import keep_shard


class HeadState(NamedTuple):
    """The buffers as they are now.

    Attributes:
        rows: by name, those that there are.
            centers: (rows, K·D), drawn from N(0, 0.01²) by global class id, so the start depends on
                neither the world size nor num_classes.
            velocity: (rows, K·D), with momentum alone.
            center_scales, velocity_scales: (rows, K) float32, with float8 alone: what the values of
                a sub-center are multiplied by.
        expectations: (rows, D) of the classes, in the arithmetic's dtype; None without
            expectation_margin.
        steps: 0-d int64, the number of `step` calls so far, from which each step's draws are made.
        nonfinite_steps: 0-d int64, how many of them changed nothing for that reason.
        margin_state: the margin's running values.
        learned, learned_velocity: (k,) what is learned beside the centers: by the margin, then by
            each extra term.
        margin_factor: 0-d in [0, 1], the share of the margin in force.
    """

    rows: dict[str, Tensor]
    expectations: Tensor | None
    steps: Tensor
    nonfinite_steps: Tensor
    margin_state: Tensor
    learned: Tensor
    learned_velocity: Tensor
    margin_factor: Tensor

    @classmethod
    def of(cls, head: Any) -> HeadState:
        return cls(kept_rows(head), *(getattr(head, name) for name in cls._fields[1:]))

    @property
    def centers(self) -> Stored:
        """As they are kept."""
        centers = stored_rows(self.rows, CENTERS)
        assert centers is not None
        return centers

    @property
    def dtype(self) -> torch.dtype:
        """Of the arithmetic."""
        return self.margin_factor.dtype


def begin_state(
    head: Any,
    placement: Placement,
    *,
    dtype: torch.dtype,
    centers_dtype: torch.dtype | None,
    momentum_dtype: torch.dtype | None,
    expectations: bool,
    classes: float,
) -> None:
    """Give a head its buffers as they are before the first step.

    Args:
        head: whose settings, `ranks` and `shard` are there.
        placement: of centers and velocity.
        dtype: of the arithmetic.
        classes: how many take part in a step, of all ranks together.
    """
    margin, device = head.margin, placement.device
    begin = partial(
        begin_rows, head.shard, head.embedding_dim, subcenters=head.subcenters, placement=placement
    )
    centers = begin(dtype=centers_dtype or dtype, seed=head.seed)
    velocity = begin(dtype=momentum_dtype or dtype, seed=None) if head.momentum else None
    register_rows(head, centers, velocity)
    state = torch.tensor(margin.initial_state(), dtype=dtype, device=device)
    bank = state.new_zeros(head.shard.num_local, head.embedding_dim) if expectations else None
    head.register_buffer("expectations", bank)
    for name in ("steps", "nonfinite_steps"):
        head.register_buffer(name, torch.zeros((), dtype=torch.int64, device=device))
    head.register_buffer("margin_state", state, persistent=state.numel() > 0)
    learned = [margin.initial_learned(classes)]
    learned += [term.initial_learned(head.embedding_dim) for term in head.extra_terms]
    keep_learned(head, sum(learned, ()), like=state)
    head.register_buffer("margin_factor", state.new_ones(()), persistent=False)
    keep_shard(head)
