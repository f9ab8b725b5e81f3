"""One step's passes over a rank's classes by the kernels of heads.passes.kernels, for GPUs.

The same face as heads.passes.cosine_softmax and heads.passes.row_update. Nothing is collected or
narrowed beforehand: the kernels read the sampled rows where they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from heads.negatives import Negatives
from heads.passes import kernels
from heads.passes.cosine_softmax import CenterGradient, ShardGradients, Terms
from heads.passes.value_range import bound_targets, coefficient_gain, is_finite
from heads.passes.workspace import Workspace
from heads.rows.stored import Noise, Stored
from heads.sampling import NOBODY, Sample

# A log-sum-exp at this scale, over it, is the maximum: two equal cosines raise it by 4e-5, which is
# less than half-precision products are off.
_SHARP = 2.0**14


class TritonSoftmax:
    """What ChunkedSoftmax is, for centers in float32 and products in float16 or bfloat16."""

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
        self._centers, self._scale, self._subcenters = centers.values, scale, subcenters
        self._workspace = workspace
        self._inverse = kernels.inverse_norms(centers.values, sample.rows, subcenters=subcenters)
        self._classes: dict[str, Any] = {
            "rows": sample.rows,
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
            found = kernels.negative_logsumexp(
                self._embeddings, self._centers, self._inverse, **sharp
            )
            largest.copy_(found / _SHARP)
        return kernels.negative_logsumexp(
            self._embeddings, self._centers, self._inverse, **self._classes
        )

    def gradients(
        self, terms: Terms, *, share: float, into: CenterGradient | None
    ) -> ShardGradients:
        """As ChunkedSoftmax.gradients."""
        global_batch, dim = self._embeddings.shape
        gain = coefficient_gain(global_batch, self._embeddings.dtype)
        unit = share * self._scale / (global_batch * gain)
        target = bound_targets(
            terms.target,
            self._classes["positions"],
            gain=gain,
            compute_dtype=self._embeddings.dtype,
        )
        if into is None:
            shape = (self._inverse.shape[0], dim)
            product = self._workspace.take("rows", shape, self._embeddings.dtype)
        else:
            product = into.product
        embedding_grad, along, reach = kernels.gradients(
            self._embeddings,
            self._centers,
            self._inverse,
            **self._classes,
            log_partition=terms.log_partition,
            target=target,
            target_subcenter=terms.subcenter,
            gain=gain,
            product=product,
            accumulate=into is not None,
        )
        pull = (self._inverse * unit).unsqueeze(1)
        drift = (along * self._inverse * self._inverse * -unit).unsqueeze(1)
        if into is None:
            centers = CenterGradient(product, pull, drift)
        else:
            into.pull.copy_(pull)
            into.drift.add_(drift)
            centers = into
        most = reach.amax() if reach.numel() else reach.sum()
        finite = is_finite(centers.pull, centers.drift, most, product.dtype)
        threshold = None
        if self._classes["negatives"].threshold is not None:
            # Of all coefficients only the targets' are negative; these as the products read them.
            own = (gain * target).to(self._embeddings.dtype).float()
            own = torch.where(self._classes["positions"] >= 0, own, 0.0).sum()
            threshold = (reach.sum() + 2 * own) * (-unit / self._scale)
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
    kernels.update_rows(
        centers.values,
        None if velocity is None else velocity.values,
        rows=sample.rows,
        product=gradient.product,
        pull=gradient.pull.view(-1),
        drift=gradient.drift.view(-1),
        lr=lr.to(torch.float32),
        momentum=momentum,
        weight_decay=weight_decay,
        apply=apply,
        active=None if sample.column_groups is None else sample.column_groups != NOBODY,
    )
