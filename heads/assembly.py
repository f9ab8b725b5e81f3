"""A head's steps, assembled from the parts that its settings ask for, on the device where it is."""

from __future__ import annotations

from typing import Any

from heads.distributed_loss import DistributedLoss
from heads.expectations import NOT_IN_KERNELS
from heads.graph import HeadGraphs
from heads.head_state import HeadState
from heads.head_step import Forward, HeadStep
from heads.neighbors.classes import sampling_near
from heads.passes.backend import choose_backend
from heads.rows.placement import Placement
from heads.rows.step_rows import StepRows
from heads.sampling import GroupClasses, sampling_at


def assemble_step(
    head: Any,
    placement: Placement,
    *,
    group_sampling: GroupClasses | None,
    backend: str,
    cuda_graph: bool,
) -> HeadStep:
    """The steps of a head as it is now: other settings, or buffers elsewhere, need others.

    Args:
        head: whose settings, buffers, `ranks`, `shard` and `neighbors` are there.
        placement: of centers and velocity.
        group_sampling, backend, cuda_graph: as PartialFC takes them.

    Raises:
        UserError: a backend that is unknown or cannot run there.
    """
    sampling = group_sampling or sampling_at(float(head.sample_rate))
    arithmetic = DistributedLoss(
        head.margin,
        head.ranks,
        head.shard,
        choose_backend(
            backend,
            device=head.device,
            embedding_dim=head.embedding_dim,
            compute_dtype=head.compute_dtype,
            obstacle=None if head.expectations is None else NOT_IN_KERNELS,
        ),
        subcenters=head.subcenters,
        compute_dtype=head.compute_dtype,
        extra_terms=head.extra_terms,
        columns=head.columns,
    )
    graphs: HeadGraphs[Forward] = HeadGraphs(head.ranks, head.device, wanted=cuda_graph)
    rows = StepRows(
        HeadState.of(head).rows,
        placement,
        head.shard,
        head.ranks,
        seed=head.seed,
        device=head.device,
        recording=graphs.recording,
        prefetch=head.prefetch,
    )
    return HeadStep(
        arithmetic,
        rows,
        graphs,
        sampling_near(sampling, head.neighbors),
        expectation_margin=head.expectation_margin,
        neighbors=head.neighbors,
        seed=head.seed,
        momentum=head.momentum,
        weight_decay=head.weight_decay,
        device=head.device,
    )
