"""One step's passes over a rank's classes by Triton kernels, for GPUs.

The same face as heads.passes.cosine_softmax and heads.passes.row_update. The sampled rows are read
twice in a step, where and as they are kept: once into unit rows of the compute dtype, which all
products read and which the gradients then take the place of, and once by the update.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from heads.negatives import Negatives
from heads.passes.cosine_softmax import CenterGradient, ShardGradients, Terms
from heads.passes.kernels import class_kernels, row_kernels
from heads.passes.value_range import bound_targets, coefficient_gain
from heads.passes.workspace import Workspace
from heads.rows.stored import Noise, Stored
from heads.sampling import NOBODY, Sample

# A log-sum-exp at this scale, over it, is the maximum: two equal cosines raise it by 4e-5, which is
# less than half-precision products are off.
_SHARP = 2.0**14


class TritonSoftmax:
    """What ChunkedSoftmax is, for statistics in float32 and products in float16 or bfloat16."""

    def __init__(
        self,
        embeddings: Tensor,
        centers: Stored,
        sample: Sample,
        negatives: Negatives,
        *,
        scale: float,
        subcenters: int,
        compute_dtype: torch.dtype,
        workspace: Workspace,
    ) -> None:
        self._embeddings = embeddings.to(compute_dtype)  # (G, D)
        self._scale = scale
        count = centers.values.shape[0] if sample.rows is None else sample.rows.shape[0]
        shape = (count * subcenters, embeddings.shape[1])
        self._unit = workspace.take("rows", shape, compute_dtype)
        self._inverse = row_kernels.unit_rows(self._unit, centers, sample.rows)
        self._classes: dict[str, Any] = {
            "positions": sample.positions,
            "groups": None
            if sample.column_groups is None
            else (sample.column_groups, sample.row_groups),
            "negatives": negatives,
            "scale": scale,
            "subcenters": subcenters,
        }

    def logsumexp(self, largest: Tensor | None = None) -> Tensor:
        """As ChunkedSoftmax.logsumexp; `largest` takes another product over the classes."""
        if largest is not None:
            plain = Negatives(filter_above=self._classes["negatives"].filter_above)
            sharp = self._classes | {"negatives": plain, "scale": _SHARP}
            found = class_kernels.negative_logsumexp(self._embeddings, self._unit, **sharp)
            largest.copy_(found / _SHARP)
        return class_kernels.negative_logsumexp(self._embeddings, self._unit, **self._classes)

    def gradients(
        self, terms: Terms, *, share: float, into: CenterGradient | None
    ) -> ShardGradients:
        """As ChunkedSoftmax.gradients."""
        global_batch = len(self._embeddings)
        gain = coefficient_gain(global_batch, self._embeddings.dtype)
        unit = share * self._scale / (global_batch * gain)
        target = bound_targets(
            terms.target,
            self._classes["positions"],
            gain=gain,
            compute_dtype=self._embeddings.dtype,
        )
        embedding_grad, along, negatives = class_kernels.gradients(
            self._embeddings,
            self._unit,
            **self._classes,
            log_partition=terms.log_partition,
            target=target,
            target_subcenter=terms.subcenter,
            gain=gain,
            into=None if into is None else into.product,
        )
        pull = (self._inverse * unit).unsqueeze(1)
        drift = (along * self._inverse * self._inverse * -unit).unsqueeze(1)
        if into is None:
            centers = CenterGradient(self._unit, pull, drift)
        else:
            into.pull.copy_(pull)
            into.drift.add_(drift)
            centers = into
        # Overflow and NaN show in `along`, so in the drift. What is left is too large a `pull`. No
        # product passes the sum of its coefficients: of negatives, at most 1 and bent at most
        # threefold, and of targets.
        most = gain * (3 * global_batch + target.abs().sum())
        finite = torch.isfinite((most * pull + centers.drift.abs()).sum())
        threshold = None
        if negatives is not None:
            # The targets' as the products read them.
            own = (gain * target).to(self._embeddings.dtype).float()
            own = torch.where(self._classes["positions"] >= 0, own, 0.0).sum()
            threshold = (negatives + own) * (-unit / self._scale)
        return ShardGradients(embedding_grad.mul_(unit), centers, finite, threshold)


def update_rows(
    centers: Stored,
    velocity: Stored | None,
    sample: Sample,
    gradient: CenterGradient,
    *,
    lr: Tensor,
    momentum: float,
    weight_decay: float,
    apply: Tensor,
    noise: Noise | None,
    workspace: Workspace,
) -> None:
    """As heads.passes.row_update.update_rows, with no scratch memory."""
    row_kernels.update_rows(
        gradient.product,
        centers,
        velocity,
        rows=sample.rows,
        pull=gradient.pull.view(-1),
        drift=gradient.drift.view(-1),
        lr=lr.to(torch.float32),
        momentum=momentum,
        weight_decay=weight_decay,
        apply=apply,
        active=None if sample.column_groups is None else sample.column_groups != NOBODY,
        noise=noise,
    )
