"""The softmax over cosines to class centers, a chunk of classes at a time, in plain PyTorch.

The (G, classes) logits never exist. A rank's part of one step is three calls:

    negative, target = softmax_statistics(...)  # first pass: per row, over this rank's classes
    loss, terms = combine(...)                  # once the ranks have exchanged the statistics
    gradients = softmax_gradients(...)          # second pass: the logits again, their gradients

The statistics leave each row's own class out, so that a margin, which needs the target cosines of
the whole global batch, is applied once, in `combine`. Nothing here communicates or waits for the
device.

G is the global batch, D the embedding size, S the rank's classes in this step. The statistics are
float32, or float64 where the centers are. `compute_dtype` is what the matrix products read; where
it is a half type their results are rounded to it too, before they are widened and accumulated.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from heads.margins import Margin

# Scratch of one chunk: small enough to stay in a CPU's cache and a GPU's L2, and below the size
# from which glibc gives freed memory back to the system only to fault it in again.
_SCRATCH_BYTES = 16 << 20
# With very large batches the scratch may grow instead: narrower matrix products waste the device.
_MIN_CHUNK = 1024


class Classes(NamedTuple):
    """The classes of this rank that take part in a step.

    centers: (rows, D) float32 or float64, all of the rank's, not normalized.
    rows: (S,) int64 ascending rows of `centers`, or None for all of them.
    positions: (G,) int64, where each sample's class stands among the S; -1: it does not.
    """

    centers: Tensor
    rows: Tensor | None
    positions: Tensor

    @property
    def count(self) -> int:
        return self.centers.shape[0] if self.rows is None else self.rows.shape[0]

    def chunk(self, start: int, stop: int) -> Tensor:
        """(stop - start, D) center rows: a view, or a copy where the classes are sampled."""
        if self.rows is None:
            return self.centers[start:stop]
        return self.centers.index_select(0, self.rows[start:stop])


class LossTerms(NamedTuple):
    """What the second pass needs to know of each row, both (G,)."""

    log_partition: Tensor  # log of the sum of all classes' exponentiated logits, margin included
    target: Tensor  # d(loss · G / scale) / d(target cosine before the margin)


class Gradients(NamedTuple):
    """embeddings: (G, D) of the normalized embeddings, this rank's classes' share of the sum.

    centers: (S, D) of the raw center rows.
    finite: 0-d bool, whether every center gradient is.
    """

    embeddings: Tensor
    centers: Tensor
    finite: Tensor


def chunk_size(global_batch: int, embedding_dim: int, dtype: torch.dtype) -> int:
    """Classes a chunk: what fits the scratch budget, counting two (G, chunk) and a (chunk, D)."""
    bytes_per_class = (2 * global_batch + embedding_dim) * dtype.itemsize
    return max(_MIN_CHUNK, _SCRATCH_BYTES // bytes_per_class)


def inverse_norms(rows: Tensor) -> Tensor:
    """(N, D) → (N, 1) reciprocal lengths; 0 for rows of zeros, which then neither pull nor move."""
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return torch.where(norms < torch.finfo(rows.dtype).tiny, 0.0, 1 / norms)


def softmax_statistics(
    embeddings: Tensor, classes: Classes, *, scale: float, compute_dtype: torch.dtype, chunk: int
) -> tuple[Tensor, Tensor]:
    """First pass. embeddings: (G, D) normalized, in the centers' dtype.

    Returns, both (G,) in the centers' dtype: the log-sum-exp of `scale · cosine` over this rank's
    classes but the row's own (-inf where there are none), and the cosine to the row's own class,
    0 where it is not on this rank. The latter is never computed in `compute_dtype`.
    """
    negative = embeddings.new_full((embeddings.shape[0],), -math.inf)
    for start, stop, _, _, logits in _logit_chunks(
        embeddings, classes, scale=scale, compute_dtype=compute_dtype, chunk=chunk
    ):
        inside, column = _columns(classes.positions, start, stop)
        # The row's own class leaves the sum; a row whose class is elsewhere keeps what it has.
        kept = torch.where(inside, -math.inf, logits.gather(1, column))
        logits.scatter_(1, column, kept)
        negative = torch.logaddexp(negative, _logsumexp_inplace(logits))
    return negative, _target_cosines(embeddings, classes)


def combine(
    negative: Tensor, target_cosine: Tensor, norms: Tensor, margin: Margin
) -> tuple[Tensor, LossTerms]:
    """The loss of the global batch, from statistics over every rank's classes; all inputs (G,).

    Returns the mean cross-entropy, 0-d, and what the second pass needs.
    """
    target = margin(target_cosine, norms)
    target_logit = margin.scale * target.cosine
    # -log p(target) and p(target) - 1 through the logit's distance: no cancellation as p → 1.
    distance = negative - target_logit
    losses = torch.logaddexp(distance, torch.zeros_like(distance))
    log_partition = torch.logaddexp(negative, target_logit)
    return losses.mean(), LossTerms(log_partition, -torch.sigmoid(distance) * target.slope)


def softmax_gradients(
    embeddings: Tensor,
    classes: Classes,
    terms: LossTerms,
    *,
    scale: float,
    compute_dtype: torch.dtype,
    chunk: int,
    out: Tensor,
) -> Gradients:
    """Second pass: gradients of the mean loss; `out` (S, D) receives those of the centers.

    Deterministic: every target term enters through the matrix products, none through an atomic add.
    """
    global_batch = embeddings.shape[0]
    gain = _gain(global_batch, compute_dtype)
    # The products read d loss / d cosine times gain · G / scale; `factor` undoes that.
    factor = scale / (global_batch * gain)
    shift = (terms.log_partition - math.log(gain)).unsqueeze(1)  # (G, 1)
    limit = torch.finfo(compute_dtype).max
    target = (gain * terms.target).clamp(-limit, limit).unsqueeze(1)  # (G, 1)

    read_embeddings = embeddings.to(compute_dtype)  # (G, D)
    embedding_grad = torch.zeros_like(embeddings)
    total = embeddings.new_zeros(())
    for start, stop, directions, inverse, logits in _logit_chunks(
        embeddings, classes, scale=scale, compute_dtype=compute_dtype, chunk=chunk
    ):
        coefficients = torch.sub(logits, shift).exp_()  # (G, chunk)
        inside, column = _columns(classes.positions, start, stop)
        kept = torch.where(inside, target, coefficients.gather(1, column))
        coefficients.scatter_(1, column, kept)

        read_coefficients = coefficients.to(compute_dtype)
        embedding_grad += read_coefficients @ directions
        grad = out[start:stop]  # (chunk, D)
        _matmul_into(grad, read_coefficients.T, read_embeddings)
        # Through the normalization of the centers: (g - (g·w) w) / |w|, with w the unit row and g·w
        # read off the logits, which is cheaper than a product over D.
        along = coefficients.mul_(logits).sum(0).div_(scale).unsqueeze(1)  # (chunk, 1)
        grad.addcmul_(directions, along, value=-1).mul_(inverse * factor)
        # A sum is non-finite when a term is, and reads the chunk while it is still in the cache.
        total += grad.sum()
    return Gradients(embedding_grad.mul_(factor), out, torch.isfinite(total))


def _logit_chunks(
    embeddings: Tensor, classes: Classes, *, scale: float, compute_dtype: torch.dtype, chunk: int
) -> Iterator[tuple[int, int, Tensor, Tensor, Tensor]]:
    """(start, stop, unit rows (chunk, D), inverse norms (chunk, 1), logits (G, chunk)), one by one.

    The logits have the embeddings' dtype, the unit rows `compute_dtype`; the receiver may overwrite
    the logits.
    """
    scaled = (embeddings * scale).to(compute_dtype)  # (G, D)
    for start in range(0, classes.count, chunk):
        stop = min(start + chunk, classes.count)
        rows = classes.chunk(start, stop)
        inverse = inverse_norms(rows)
        directions = (rows * inverse).to(compute_dtype)
        yield start, stop, directions, inverse, (scaled @ directions.T).to(embeddings.dtype)


def _columns(positions: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """Which rows have their own class in this chunk, and the nearest column to it; both (G, 1)."""
    offset = (positions - start).unsqueeze(1)
    inside = (offset >= 0) & (offset < stop - start)
    return inside, offset.clamp(0, stop - start - 1)


def _logsumexp_inplace(logits: Tensor) -> Tensor:
    """(G, chunk) → (G,), leaving the logits overwritten; -inf where all of them are."""
    # A finite stand-in for a maximum of -inf, from which -inf may be subtracted.
    largest = logits.amax(1, keepdim=True).clamp_min(torch.finfo(logits.dtype).min)
    return logits.sub_(largest).exp_().sum(1).log_() + largest.squeeze(1)


def _target_cosines(embeddings: Tensor, classes: Classes) -> Tensor:
    """(G,) cosine of each row to its own class's center, 0 where that is not on this rank."""
    if classes.count == 0:
        return embeddings.new_zeros(embeddings.shape[0])
    index = classes.positions.clamp_min(0)
    if classes.rows is not None:
        index = classes.rows.index_select(0, index)
    centers = classes.centers.index_select(0, index)  # (G, D)
    cosines = (embeddings * centers).sum(1) * inverse_norms(centers).squeeze(1)
    return torch.where(classes.positions >= 0, cosines, 0.0)


def _matmul_into(out: Tensor, left: Tensor, right: Tensor) -> None:
    if left.dtype == out.dtype:
        torch.mm(left, right, out=out)
    else:
        out.copy_(left @ right)


def _gain(global_batch: int, compute_dtype: torch.dtype) -> float:
    """A power of two that lifts small probabilities out of float16's subnormals, else 1.

    A product over the batch adds up to `global_batch` terms of at most gain; the 8 leaves room for
    slopes above 1.
    """
    if compute_dtype != torch.float16:
        return 1.0
    return 2.0 ** math.floor(math.log2(torch.finfo(torch.float16).max / (8 * global_batch)))
