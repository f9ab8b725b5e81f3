"""The softmax over cosines to class centers, a chunk of classes at a time, in plain PyTorch.

The (G, classes) logits never exist. A rank's part of one step is two passes over its classes:

    softmax = ChunkedSoftmax(embeddings, centers, sample, negatives, ...)
    negative = softmax.logsumexp()        # per row, over this rank's classes but the row's own
    gradients = softmax.gradients(...)    # once the ranks have exchanged their sums

The second pass needs the products of the first again: all are kept where the gradients' memory has
room for them, else as many as fit a fixed budget, and the others are computed again.
heads.passes.kernels does the same on GPUs. Nothing here communicates or waits for the device.

G is the global batch, D the embedding size, S the rank's classes in this step, K the sub-centers of
a class (1 as a rule). The statistics have the embeddings' dtype, float32 or float64, whatever the
centers are kept in. `compute_dtype` is what the matrix products read; where it is a half type their
results are rounded to it too.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from heads.negatives import Negatives
from heads.passes.value_range import bound_targets, coefficient_gain, is_finite, reach_of
from heads.passes.workspace import Workspace, pieces
from heads.rows.stored import Stored, collect, read_rows
from heads.sampling import EVERYONE, Sample

# One (G, chunk) tensor of a chunk: a handful of them stay in a CPU's caches and a GPU's L2.
_CHUNK_BYTES = 2 << 20
# With very large batches they may grow: narrower matrix products waste the device.
_MIN_CHUNK = 1024
# What the first pass keeps of its products for the second, whatever the number of classes.
KEPT_BYTES = 40 << 20
_LN2 = math.log(2)


class ShardGradients(NamedTuple):
    """What the second pass leaves.

    Attributes:
        embeddings: (G, D) gradient of the unit embeddings, this rank's classes' share of the sum.
        centers: of the raw rows of the centers.
        finite: 0-d bool, whether every center gradient is; those of the embeddings are not looked
            at.
        threshold: 0-d, of negatives.threshold, this rank's classes' share; None without one.
    """

    embeddings: Tensor
    centers: CenterGradient
    finite: Tensor
    threshold: Tensor | None = None


class CenterGradient(NamedTuple):
    """The gradient of sub-center row r is `pull[r] · product[r] + drift[r] · center[r]`.

    Left in this form, because the update reads the center anyway and a half-precision product
    takes half the memory. `product` is (S·K, D); `pull` and `drift` are (S·K, 1) in the dtype of
    the statistics, the latter from the normalization: moving along itself does not turn a center.
    """

    product: Tensor
    pull: Tensor
    drift: Tensor


class Terms(NamedTuple):
    """What the second pass must know of each row, all (G,); made by heads.distributed_loss."""

    log_partition: Tensor  # log of the sum of all classes' exponentiated logits, margin included
    target: Tensor  # d(loss · G / scale) / d(target cosine before the margin)
    subcenter: Tensor  # int64, which of its class's sub-centers the target cosine is to


class _Chunk(NamedTuple):
    """Classes start … stop − 1 of the sample, n of them."""

    start: int
    stop: int
    rows: Tensor  # (n·K, D) what the products read of the centers, in compute_dtype
    cosine: Tensor  # (G, n·K) in the embeddings' dtype: scratch, free to be overwritten


def chunk_size(global_batch: int, dtype: torch.dtype) -> int:
    """Columns a chunk: what makes one (G, chunk) tensor fit its budget."""
    return max(_MIN_CHUNK, _CHUNK_BYTES // (global_batch * dtype.itemsize))


def inverse_norms(rows: Tensor) -> Tensor:
    """(N, D) → (N, 1) reciprocal lengths; 0 for rows of zeros, which then neither pull nor move."""
    return _reciprocal(torch.linalg.vector_norm(rows, dim=1, keepdim=True))


def _reciprocal(norms: Tensor) -> Tensor:
    return torch.where(norms < torch.finfo(norms.dtype).tiny, 0.0, 1 / norms)


class ChunkedSoftmax:
    """One step's two passes over this rank's classes.

    Args:
        embeddings: (G, D) of unit length, float32 or float64.
        centers: all n of the rank's, not normalized.
        workspace: holds what is large from step to step.
    """

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
        self._embeddings, self._sample, self._negatives = embeddings, sample, negatives
        self._scale, self._subcenters = scale, subcenters
        self._scale2 = scale / _LN2
        self._dtype, self._compute_dtype = embeddings.dtype, compute_dtype
        self._workspace = workspace
        self._centers = centers
        self._read_embeddings = embeddings.to(compute_dtype)  # (G, D)
        self._global_batch, self._dim = embeddings.shape
        self._count = centers.values.shape[0] if sample.rows is None else sample.rows.shape[0]
        count = self._count * subcenters
        self._inverse = workspace.take("inverse norms", (count, 1), self._dtype)

        # The products read the centers themselves where these need no collecting and no narrowing.
        self._copied = sample.rows is not None or compute_dtype != centers.values.dtype
        if self._copied:
            self._rows = workspace.take("rows", (count, self._dim), compute_dtype)
        else:
            self._rows = centers.values.view(count, self._dim)
        # As they are, not of unit length, which saves a pass over them; only float16's narrow range
        # needs unit rows. `factor` times a row that is read is a unit row.
        self._reads_unit = compute_dtype == torch.float16
        self._factor = torch.ones_like(self._inverse) if self._reads_unit else self._inverse
        self._factor_row = self._factor.T  # (1, S·K)
        self._slots = sample.positions.unsqueeze(1)  # (G, 1)

        per_class = self._global_batch * subcenters
        self._chunk = max(1, chunk_size(self._global_batch, self._dtype) // subcenters)
        if not self._copied and self._global_batch <= self._dim:
            # All products wait where the gradients will be, which `gradients` goes through
            # backwards: they lie further to the front and have been read before.
            self._kept = self._count
            self._products = workspace.take("rows", (count, self._dim), compute_dtype).view(-1)
        else:
            self._kept = min(self._count, KEPT_BYTES // (per_class * compute_dtype.itemsize))
            self._products = workspace.take("products", (self._kept * per_class,), compute_dtype)

    def logsumexp(self, largest: Tensor | None = None) -> Tensor:
        """First pass: (G,) log-sum-exp of `scale · cosine` over this rank's classes but the row's
        own; -inf where there are none.

        Args:
            largest: (G,) that begins at -inf and receives the largest cosine of these classes,
                before the hook has bent it.
        """
        total = self._embeddings.new_full((self._global_batch,), -math.inf)
        for start, stop in self._bounds():
            self._read_rows(start, stop)
            chunk = self._chunk_of(start, stop, again=False)
            cosine = self._nearest(chunk)[0]
            logits = self._bend(cosine, chunk)[0]  # (G, n)
            if largest is not None:
                seen = torch.where(logits > -math.inf, cosine, -math.inf)
                _overwrite(seen, *self._own(chunk), -math.inf)
                torch.maximum(largest, seen.amax(1), out=largest)
            logits.mul_(self._scale2)
            # The row's own class leaves the sum.
            _overwrite(logits, *self._own(chunk), -math.inf)
            total = torch.logaddexp2(total, _logsumexp2_inplace(logits))
        return total * _LN2

    def gradients(
        self, terms: Terms, *, share: float, into: CenterGradient | None
    ) -> ShardGradients:
        """Second pass: gradients of `share` times the mean loss over the rows.

        Deterministic: every target term enters through the matrix products, none through an atomic
        add.

        Args:
            into: a gradient for the same sample, its product in the dtype of the statistics, to
                which that of the centers is added.
        """
        gain = coefficient_gain(self._global_batch, self._compute_dtype)
        # The products read d loss / d cosine times gain · G / scale; `unit` undoes that.
        unit = share * self._scale / (self._global_batch * gain)
        # In powers of two, which CPUs raise four times as fast as e's.
        shift = (math.log2(gain) - terms.log_partition / _LN2).unsqueeze(1)  # (G, 1)
        target = bound_targets(
            terms.target, self._sample.positions, gain=gain, compute_dtype=self._compute_dtype
        )
        target = gain * target

        # Written where the gradient's is going to be, if that is of this batch alone.
        drift = self._workspace.take("drift", self._inverse.shape, self._dtype)
        along = drift.squeeze(1)
        centers = into or self._new_gradient(drift)
        centers.pull.fill_(unit)
        if self._reads_unit:
            centers.pull.mul_(self._inverse)
        embedding_grad = torch.zeros_like(self._embeddings)
        total, steepest = self._inverse.new_zeros(()), self._inverse.new_ones(())
        for start, stop in reversed(self._bounds()):
            chunk = self._chunk_of(start, stop, again=True)
            columns = self._columns(start, stop)
            coefficients, slope = self._coefficients(
                chunk, shift, target.unsqueeze(1), terms.subcenter
            )
            if self._negatives.threshold is not None:
                total += coefficients.sum()
            if slope is not None:
                steepest = torch.maximum(steepest, slope.abs().amax())
            torch.sum(chunk.cosine.mul_(coefficients), 0, out=along[columns])
            coefficients.mul_(self._factor_row[:, columns])
            read = coefficients.to(self._compute_dtype)  # (G, n·K)
            _add_product(embedding_grad, read, chunk.rows)
            # The rows have been read for the last time: the product may take their place.
            if into is None:
                torch.mm(read.T, self._read_embeddings, out=centers.product[columns])
            else:
                _add_product(centers.product[columns], read.T, self._read_embeddings)
        drift.mul_(self._inverse).mul_(self._inverse).mul_(-unit)
        if into is not None:
            into.drift.add_(drift)
        embedding_grad.mul_(unit)
        reach = reach_of(self._factor, gain * steepest, target, self._sample.positions)
        return ShardGradients(
            embedding_grad,
            centers,
            is_finite(centers.pull, centers.drift, reach, self._compute_dtype),
            None if self._negatives.threshold is None else total * (-unit / self._scale),
        )

    def _new_gradient(self, drift: Tensor) -> CenterGradient:
        """Memory for gradients that are not added up: over the copied rows, if there are any."""
        shape, take = self._inverse.shape, self._workspace.take
        product = self._rows
        if not self._copied:
            product = take("rows", self._rows.shape, self._compute_dtype)
        return CenterGradient(product, take("pull", shape, self._dtype), drift)

    def _bounds(self) -> list[tuple[int, int]]:
        starts = range(0, self._count, self._chunk)
        return [(start, min(start + self._chunk, self._count)) for start in starts]

    def _columns(self, start: int, stop: int) -> slice:
        """The sub-centers of classes start … stop − 1."""
        return slice(start * self._subcenters, stop * self._subcenters)

    def _read_rows(self, first: int, last: int) -> None:
        """Collect the rows of classes first … last − 1, convert them to what the products read,
        which finds them in the cache, and measure them."""
        per_class = self._subcenters * self._dim * self._dtype.itemsize
        for offset, end in pieces(last - first, per_class):
            start, stop = first + offset, first + end
            columns = self._columns(start, stop)
            picked = self._sample.slots(start, stop)
            if self._centers.values.dtype == self._compute_dtype:
                rows = self._rows[columns]
                if self._copied:
                    collect(self._centers.values, picked, out=rows.view(stop - start, -1))
                if rows.dtype != self._dtype:
                    piece = self._workspace.take("chunk: row piece", rows.shape, self._dtype)
                    rows = piece.copy_(rows)
                torch.linalg.vector_norm(rows, dim=1, keepdim=True, out=self._inverse[columns])
                continue
            rows = read_rows(
                self._centers,
                picked,
                self._dtype,
                workspace=self._workspace,
                name="chunk: row piece",
            ).view(-1, self._dim)  # (n·K, D)
            norms = self._inverse[columns]
            torch.linalg.vector_norm(rows, dim=1, keepdim=True, out=norms)
            self._rows[columns] = rows * _reciprocal(norms) if self._reads_unit else rows
        norms = self._inverse[self._columns(first, last)]
        norms.copy_(_reciprocal(norms))

    def _chunk_of(self, start: int, stop: int, *, again: bool) -> _Chunk:
        """Multiply with the rows of a chunk, or take what is kept of that from the first time."""
        columns = self._columns(start, stop)
        rows = self._rows[columns]
        kept = stop <= self._kept
        if kept:
            first, last = columns.start * self._global_batch, columns.stop * self._global_batch
            product = self._products[first:last].view(self._shape(rows.shape[0]))
            product = self._batch_first(product)
        else:
            product = self._scratch("product", rows.shape[0], rows.dtype)
        if not (again and kept):
            self._multiply(rows, product)
        cosine = self._scratch("cosine", rows.shape[0], self._dtype)
        cosine.copy_(product).mul_(self._factor_row[:, columns])
        return _Chunk(start, stop, rows, cosine)

    def _multiply(self, rows: Tensor, product: Tensor) -> None:
        """(G, n·K) product ← embeddings · rows; torch.compile wants the memory in its own order."""
        if product.is_contiguous():
            torch.mm(self._read_embeddings, rows.T, out=product)
        else:
            torch.mm(rows, self._read_embeddings.T, out=product.T)

    def _shape(self, columns: int) -> tuple[int, int]:
        """Of (G, columns) in memory, in the order that products are fastest in.

        Measured on CPUs: row-major for half types, column-major for full ones, by a quarter.
        """
        shape = (self._global_batch, columns)
        return shape if self._compute_dtype.itemsize == 2 else shape[::-1]

    def _batch_first(self, matrix: Tensor) -> Tensor:
        """(G, columns) of a matrix of `_shape`."""
        return matrix if self._compute_dtype.itemsize == 2 else matrix.T

    def _scratch(self, name: str, columns: int, dtype: torch.dtype) -> Tensor:
        """(G, columns) of the workspace."""
        return self._batch_first(
            self._workspace.take(f"chunk: {name}", self._shape(columns), dtype)
        )

    def _nearest(self, chunk: _Chunk) -> tuple[Tensor, Tensor | None]:
        """(G, n) cosines to each class's nearest sub-center and which that is, None where K = 1."""
        if self._subcenters == 1:
            return chunk.cosine, None
        return chunk.cosine.unflatten(1, (-1, self._subcenters)).max(2)

    def _bend(self, cosine: Tensor, chunk: _Chunk) -> tuple[Tensor, Tensor | None]:
        """(G, n) cosines after the hook, -inf where a class is not to be seen, and their slopes."""
        bent, slope = self._negatives.bend(cosine)
        if self._sample.column_groups is not None:
            column = self._sample.column_groups[chunk.start : chunk.stop].unsqueeze(0)
            seen = (column == EVERYONE) | (column == self._sample.row_groups.unsqueeze(1))
            bent = torch.where(seen, bent, -math.inf)
        return bent, slope

    def _own(self, chunk: _Chunk) -> tuple[Tensor, Tensor]:
        """Which rows have their own class in this chunk, and the nearest column to it; (G, 1)."""
        offset = self._slots - chunk.start
        column = offset.clamp(0, chunk.stop - chunk.start - 1)
        return column == offset, column

    def _coefficients(
        self, chunk: _Chunk, shift: Tensor, target: Tensor, subcenter: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """(G, n·K) gain · G / scale · d loss / d cosine, and the hook's slopes (G, n) in it."""
        cosine, which = self._nearest(chunk)
        bent, slope = self._bend(cosine, chunk)
        out = self._scratch("coefficients", bent.shape[1], self._dtype)
        if out.is_contiguous():
            torch.add(shift, bent, alpha=self._scale2, out=out)
        else:  # torch.compile wants the memory in its own order
            torch.add(shift.T, bent.T, alpha=self._scale2, out=out.T)
        coefficients = out.exp2_()  # (G, n)
        if slope is not None:
            coefficients.mul_(slope)
        inside, column = self._own(chunk)
        if which is not None:
            _overwrite(coefficients, inside, column, 0.0)
            spread = torch.zeros_like(chunk.cosine).unflatten(1, (-1, self._subcenters))
            spread.scatter_(2, which.unsqueeze(2), coefficients.unsqueeze(2))
            coefficients = spread.flatten(1)
            column = column * self._subcenters + subcenter.unsqueeze(1)
        _overwrite(coefficients, inside, column, target)
        return coefficients, slope


def _overwrite(matrix: Tensor, where: Tensor, column: Tensor, value: Tensor | float) -> None:
    """Put `value` (G, 1) into one column of each row of (G, n), in the rows where `where` holds."""
    matrix.scatter_(1, column, torch.where(where, value, matrix.gather(1, column)))


def _logsumexp2_inplace(logits: Tensor) -> Tensor:
    """(G, n) → (G,) log2 of the sum of powers of two, leaving the logits overwritten; -inf where
    all of them are."""
    # A finite stand-in for a maximum of -inf, from which -inf may be subtracted.
    largest = logits.amax(1, keepdim=True).clamp_min(torch.finfo(logits.dtype).min)
    return logits.sub_(largest).exp2_().sum(1).log2_() + largest.squeeze(1)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, the sum in the total's dtype."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right
