"""The chunked softmax: equal to the dense one, whatever the chunk, the split and the precision."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize
from torch.utils._python_dispatch import TorchDispatchMode

from heads import ArcFace, CosFace, CurricularFace, Margin, Softmax, SphereFace
from heads.distributed_loss import Loss, combine, target_cosines
from heads.negatives import Negatives
from heads.passes import cosine_softmax
from heads.passes.cosine_softmax import CenterGradient, ChunkedSoftmax, chunk_size
from heads.passes.value_range import bound_targets, coefficient_gain
from heads.passes.workspace import Workspace
from heads.rows.stored import Stored
from heads.sampling import EVERYONE, NOBODY, Sample
from tests.graph_safety import GraphSafety
from tests.heads.head_reference import first_step, scalar_head


def problem(
    *, batch: int = 6, classes: int = 11, dim: int = 8, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings, centers and labels, one label twice; the same numbers in every dtype."""
    generator = torch.Generator().manual_seed(5)
    embeddings = torch.randn(batch, dim, generator=generator, dtype=torch.float64)
    centers = torch.randn(classes, dim, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, classes, (batch,), generator=generator)
    labels[-1] = labels[0]
    return embeddings.to(dtype), centers.to(dtype), labels


def hard_problem(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Target cosines of ±0.9999, of 0, and below cos(π - 0.5), where ArcFace's angle passes π."""
    embeddings, centers, _ = problem(batch=6)
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    axis = normalize(centers[labels])
    across = normalize(embeddings - (embeddings * axis).sum(1, keepdim=True) * axis)
    cosine = torch.tensor([0.9999, -0.9999, 0.0, -0.95, -0.8, 0.6], dtype=torch.float64)[:, None]
    embeddings = 3 * (cosine * axis + (1 - cosine**2).sqrt() * across)
    return embeddings.to(dtype), centers.to(dtype), labels


class Part(NamedTuple):
    """A rank's centers and the sample of them that takes part."""

    centers: Tensor
    sample: Sample


def whole(centers: Tensor, labels: Tensor) -> list[Part]:
    return [Part(centers, Sample(None, labels))]


def passes(
    embeddings: Tensor,
    parts: list[Part],
    margin: Margin,
    *,
    compute_dtype: torch.dtype | None = None,
    subcenters: int = 1,
    negatives: Negatives | None = None,
) -> tuple[Loss, list[ChunkedSoftmax]]:
    """What PartialFC does up to the loss, with the ranks one after another."""
    norms = torch.linalg.vector_norm(embeddings, dim=1)
    unit = embeddings / norms.unsqueeze(1)
    context = first_step(margin, len(embeddings), embeddings.dtype)
    own = [target_cosines(unit, Stored(part.centers), part.sample, subcenters) for part in parts]
    cosine = torch.stack([cosine for cosine, _ in own]).sum(0)
    ranks = [
        ChunkedSoftmax(
            unit,
            Stored(part.centers),
            part.sample,
            negatives or margin.negatives(cosine, context),
            scale=margin.scale,
            subcenters=subcenters,
            compute_dtype=compute_dtype or embeddings.dtype,
            workspace=Workspace(embeddings.device),
        )
        for part in parts
    ]
    negative = torch.stack([softmax.logsumexp() for softmax in ranks]).logsumexp(0)
    which = torch.stack([which for _, which in own]).sum(0)
    return combine(negative, margin(cosine, norms, context), which, margin.scale), ranks


def expand(gradient: CenterGradient, part: Part) -> Tensor:
    """(S·K, D) gradient of the raw rows."""
    rows = part.sample.rows
    centers = part.centers if rows is None else part.centers[rows]
    centers = centers.reshape(gradient.product.shape)
    return gradient.pull * gradient.product + gradient.drift * centers


def run(
    embeddings: Tensor, parts: list[Part], margin: Margin, **options: Any
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Loss, embedding gradient, and each part's center gradients."""
    loss, ranks = passes(embeddings, parts, margin, **options)
    found = [softmax.gradients(loss.terms, share=1.0, into=None) for softmax in ranks]
    assert all(gradients.finite for gradients in found)
    norms = embeddings.norm(dim=1, keepdim=True)
    unit = embeddings / norms
    grad = torch.stack([gradients.embeddings for gradients in found]).sum(0)
    grad = (grad - (grad * unit).sum(1, keepdim=True) * unit) / norms
    centers = [expand(gradients.centers, part) for gradients, part in zip(found, parts)]
    return loss.mean, grad, centers


@pytest.fixture
def classes_a_chunk(monkeypatch):
    """A function that sets how many classes make a chunk, and keeps no products."""

    def set_both(count: int, kept_bytes: int = 0) -> None:
        monkeypatch.setattr(cosine_softmax, "chunk_size", lambda *_: count)
        monkeypatch.setattr(cosine_softmax, "KEPT_BYTES", kept_bytes)

    return set_both


def relative_error(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected).abs().max() / expected.abs().max()).item()


# A float32 cosine of 0.9999 knows 1 - cos², and with it the exact slope, to three or four digits.
@pytest.mark.parametrize(("make_problem", "error32"), [(problem, 1e-4), (hard_problem, 1e-3)])
@pytest.mark.parametrize(
    "margin",
    [
        Softmax(),
        CosFace(),
        ArcFace(),
        ArcFace(gradient="straight_through"),
        ArcFace(margin=1.2),
        ArcFace(filter_above=0.3),
        CurricularFace(),
        CurricularFace(filter_above=0.4),
    ],
)
def test_loss_and_gradients_match_scalar_loops(margin, make_problem, error32, classes_a_chunk):
    classes_a_chunk(4)
    for dtype, tolerance in [(torch.float64, 1e-9), (torch.float32, error32)]:
        embeddings, centers, labels = make_problem(dtype=dtype)
        expected = scalar_head(embeddings, centers, labels, margin=margin)
        loss, embedding_grad, (center_grad,) = run(embeddings, whole(centers, labels), margin)
        assert loss.dtype == embedding_grad.dtype == center_grad.dtype == dtype
        assert relative_error(loss, expected.loss) < tolerance
        assert relative_error(embedding_grad, expected.embedding_grad) < tolerance
        assert relative_error(center_grad, expected.center_grad) < tolerance


@pytest.mark.parametrize("margin", [ArcFace(), CurricularFace(filter_above=0.4)])
@pytest.mark.parametrize("subcenters", [2, 3])
@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_the_nearest_of_several_centers_counts(margin, subcenters, chunk, classes_a_chunk):
    classes_a_chunk(chunk)
    embeddings, centers, labels = problem(classes=11 * subcenters)
    labels %= 11
    expected = scalar_head(embeddings, centers, labels, margin=margin, subcenters=subcenters)
    wide = centers.reshape(11, -1)  # a class's sub-centers side by side
    loss, embedding_grad, (center_grad,) = run(
        embeddings, whole(wide, labels), margin, subcenters=subcenters
    )
    assert relative_error(loss, expected.loss) < 1e-9
    assert relative_error(embedding_grad, expected.embedding_grad) < 1e-9
    assert relative_error(center_grad, expected.center_grad) < 1e-9


def test_equal_sub_centers_give_the_gradient_to_the_first():
    embeddings, centers, labels = problem()
    twice = centers.repeat(1, 2)
    _, _, (grad,) = run(embeddings, whole(twice, labels), ArcFace(), subcenters=2)
    _, _, (expected,) = run(embeddings, whole(centers, labels), ArcFace())
    torch.testing.assert_close(grad[0::2], expected, rtol=1e-12, atol=1e-13)
    assert not grad[1::2].any()


def test_without_a_margin_it_is_cross_entropy_of_the_cosines():
    embeddings, centers, labels = problem()
    leaves = embeddings.clone().requires_grad_(), centers.clone().requires_grad_()
    dense = cross_entropy(64 * normalize(leaves[0]) @ normalize(leaves[1]).T, labels)
    expected = torch.autograd.grad(dense, leaves)
    for margin in (Softmax(), ArcFace(margin=0.0), CosFace(margin=0.0)):
        loss, embedding_grad, (center_grad,) = run(embeddings, whole(centers, labels), margin)
        torch.testing.assert_close(loss, dense.detach(), rtol=1e-9, atol=0)
        torch.testing.assert_close(embedding_grad, expected[0], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(center_grad, expected[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kept_classes", [0, 3, 7, 11])
@pytest.mark.parametrize("chunk", [1, 2, 3, 10, 11])
@pytest.mark.parametrize("batch", [6, 8, 9])
def test_neither_the_chunk_nor_what_is_kept_matters(batch, chunk, kept_classes, classes_a_chunk):
    """Also with one class a chunk, where a chunk's only class is the row's own and leaves; and with
    no more rows than dimensions, where all products wait in the gradients' memory."""
    embeddings, centers, labels = problem(batch=batch)
    at_once = run(embeddings, whole(centers, labels), ArcFace())
    classes_a_chunk(chunk, kept_bytes=kept_classes * len(embeddings) * 8)
    chunked = run(embeddings, whole(centers, labels), ArcFace())
    torch.testing.assert_close(chunked, at_once, rtol=1e-12, atol=1e-13)


def test_classes_split_over_ranks_give_the_whole():
    """Uneven parts, one of them empty, combined by nothing but the two statistics."""
    embeddings, centers, labels = problem()
    loss, embedding_grad, (center_grad,) = run(embeddings, whole(centers, labels), ArcFace())
    parts = []
    for start, stop in [(0, 4), (4, 10), (10, 11), (11, 11)]:
        mine = (labels >= start) & (labels < stop)
        positions = torch.where(mine, labels - start, -1)
        parts.append(Part(centers[start:stop], Sample(None, positions)))
    split_loss, split_embedding_grad, split_center_grads = run(embeddings, parts, ArcFace())
    torch.testing.assert_close(split_loss, loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(split_embedding_grad, embedding_grad, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(torch.cat(split_center_grads), center_grad, rtol=1e-10, atol=1e-13)


def test_sampled_rows_are_the_softmax_over_those_rows(classes_a_chunk):
    """In any order."""
    classes_a_chunk(3)
    embeddings, centers, labels = problem()
    rows = torch.tensor(sorted({*labels.tolist(), 0, 7}, key=lambda row: row * 5 % 11))
    positions = (rows == labels.unsqueeze(1)).int().argmax(1)
    sampled = run(embeddings, [Part(centers, Sample(rows, positions))], ArcFace())
    alone = run(embeddings, whole(centers[rows], positions), ArcFace())
    torch.testing.assert_close(sampled, alone, rtol=0, atol=0)


@pytest.mark.parametrize("compute_dtype", [torch.float64, torch.bfloat16])
def test_a_row_sees_the_classes_of_its_group_and_of_everyone(compute_dtype, classes_a_chunk):
    """Its own class always, whatever the groups say."""
    classes_a_chunk(4)
    embeddings, centers, labels = problem()
    columns = torch.tensor([0, 0, EVERYONE, NOBODY, 1, 1, 1, NOBODY, EVERYONE, 0, 1])
    rows = torch.tensor([0, 1, 0, 1, -1, 2])
    visible = (columns == EVERYONE) | (columns == rows.unsqueeze(1))
    expected = scalar_head(embeddings, centers, labels, margin=ArcFace(), visible=visible)
    sample = Sample(None, labels, columns, rows)
    loss, embedding_grad, (center_grad,) = run(
        embeddings, [Part(centers, sample)], ArcFace(), compute_dtype=compute_dtype
    )
    error = 1e-9 if compute_dtype == torch.float64 else 0.05
    assert relative_error(loss, expected.loss) < error
    assert relative_error(embedding_grad, expected.embedding_grad) < error
    assert relative_error(center_grad, expected.center_grad) < error


def test_gradients_of_micro_batches_add_up():
    embeddings, centers, labels = problem()
    _, _, (expected,) = run(embeddings, whole(centers, labels), ArcFace())
    total = CenterGradient(torch.zeros_like(centers), *torch.zeros(2, 11, 1, dtype=torch.float64))
    for rows in (slice(0, 2), slice(2, 4), slice(4, 6)):
        (part,) = whole(centers, labels[rows])
        loss, (softmax,) = passes(embeddings[rows], [part], ArcFace())
        softmax.gradients(loss.terms, share=1 / 3, into=total)
    torch.testing.assert_close(expand(total, part), expected, rtol=1e-9, atol=1e-12)


def test_a_single_class_has_no_negatives_and_no_loss():
    embeddings, centers, _ = problem(classes=1)
    loss, embedding_grad, (center_grad,) = run(
        embeddings, whole(centers, torch.zeros(6, dtype=torch.int64)), ArcFace()
    )
    assert loss == 0
    assert not embedding_grad.any()
    assert not center_grad.any()


def test_float32_survives_cosines_where_plain_exponentials_underflow(classes_a_chunk):
    """All cosines near -1 at scale 200: exp(-200) is 0 in float32, yet the loss is exact."""
    classes_a_chunk(2)
    centers = torch.randn(9, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    centers = 0.01 * centers + torch.ones(8)
    embeddings = -torch.ones(4, 8) + 0.01 * torch.arange(32.0).view(4, 8)
    labels = torch.tensor([0, 3, 8, 3])
    margin = Softmax(scale=200.0)
    expected = scalar_head(embeddings, centers.float(), labels, margin=margin)
    loss, embedding_grad, (center_grad,) = run(embeddings, whole(centers.float(), labels), margin)
    assert relative_error(loss, expected.loss) < 1e-4
    assert relative_error(embedding_grad, expected.embedding_grad) < 1e-3
    assert relative_error(center_grad, expected.center_grad) < 1e-3


@pytest.mark.parametrize("compute_dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_zero_center_neither_pulls_nor_moves(compute_dtype):
    embeddings, centers, labels = problem()
    centers[labels[0] - 1] = 0
    loss, embedding_grad, (center_grad,) = run(
        embeddings, whole(centers, labels), ArcFace(), compute_dtype=compute_dtype
    )
    assert torch.isfinite(loss)
    assert torch.isfinite(embedding_grad).all()
    assert not center_grad[labels[0] - 1].any()


@pytest.mark.parametrize(
    ("compute_dtype", "tolerance"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)]
)
def test_half_precision_products_stay_close_to_float32(compute_dtype, tolerance, classes_a_chunk):
    classes_a_chunk(128, kept_bytes=32 * 256 * 2)
    embeddings, centers, labels = problem(batch=32, classes=500, dim=64, dtype=torch.float32)
    part = whole(centers, labels)
    full = run(embeddings, part, ArcFace())
    half = run(embeddings, part, ArcFace(), compute_dtype=compute_dtype)
    assert half[0].dtype == half[1].dtype == half[2][0].dtype == torch.float32
    for found, expected in zip((*half[:2], half[2][0]), (*full[:2], full[2][0])):
        error = (found - expected).norm() / expected.norm()
        assert 0 < error < tolerance


@pytest.mark.parametrize("length", [1e-6, 1e6])
def test_float16_reads_centers_of_any_length(length):
    embeddings, centers, labels = problem(dtype=torch.float32)
    full = run(embeddings, whole(length * centers, labels), ArcFace())
    half = run(embeddings, whole(length * centers, labels), ArcFace(), compute_dtype=torch.float16)
    for found, expected in zip((*half[:2], half[2][0]), (*full[:2], full[2][0])):
        assert relative_error(found, expected.double()) < 0.02


def test_float16_keeps_probabilities_that_are_subnormal_in_it():
    """Every negative at the same cosine: each has p = 2.5e-8, half the smallest float16."""
    classes = 4000
    centers = torch.tensor([[0.0, 1.0]]).repeat(classes, 1)
    embeddings, labels = torch.tensor([[2.0, 0.0]]), torch.tensor([0])
    centers[0] = torch.tensor([1.0, 0.0])
    margin = Softmax(scale=-math.log(2.5e-8))
    full = run(embeddings, whole(centers, labels), margin)
    half = run(embeddings, whole(centers, labels), margin, compute_dtype=torch.float16)
    torch.testing.assert_close(half[2][0][1:], full[2][0][1:], rtol=0.05, atol=0)
    torch.testing.assert_close(half[1], full[1], rtol=0.05, atol=1e-7)


def test_float16_saturates_where_a_slope_passes_its_range():
    """θ = 0 and a rival in the same place, times a margin whose slope is 64 times ArcFace's."""
    centers = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    for margin in (ArcFace(), SphereFace(margin=8.0)):
        loss, embedding_grad, (center_grad,) = run(
            centers[:1], whole(centers, torch.tensor([0])), margin, compute_dtype=torch.float16
        )
        for result in (loss, embedding_grad, center_grad):
            assert torch.isfinite(result).all()


@pytest.mark.parametrize("batch", [1, 100, 128, 4096])
def test_the_gain_leaves_room_for_a_whole_batch_and_for_any_slope(batch):
    largest = torch.finfo(torch.float16).max
    gain = coefficient_gain(batch, torch.float16)
    assert gain * batch <= largest / 8
    steep = torch.full((batch,), -1e5)
    for positions in (torch.zeros(batch).long(), torch.arange(batch) // 3, torch.arange(batch)):
        kept = bound_targets(steep, positions, gain=gain, compute_dtype=torch.float16)
        sums = torch.zeros(batch).index_add_(0, positions, gain * kept)
        assert sums.abs().max() <= largest / 2 * 1.0001


def test_targets_that_fit_are_left_alone_and_nan_shows():
    target = torch.tensor([-1000.0, 30.0, math.nan, 0.0])
    kept = bound_targets(target, torch.arange(4), gain=32.0, compute_dtype=torch.float16)
    torch.testing.assert_close(kept, target, rtol=0, atol=0, equal_nan=True)
    assert bound_targets(1e9 * target, target, gain=1.0, compute_dtype=torch.bfloat16)[0] == -1e12
    assert coefficient_gain(128, torch.bfloat16) == 1.0


def test_a_non_finite_center_gradient_is_reported():
    embeddings, centers, labels = problem()
    loss, (softmax,) = passes(embeddings, whole(centers, labels), ArcFace())
    assert softmax.gradients(loss.terms, share=1.0, into=None).finite
    centers[10, 0] = math.inf
    _, (poisoned,) = passes(embeddings, whole(centers, labels), ArcFace())
    assert not poisoned.gradients(loss.terms, share=1.0, into=None).finite


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements any operator's result had."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.numel = max(self.numel, result.numel())
        return result


@pytest.mark.parametrize("kept", [0, 500])
def test_the_logits_of_all_classes_never_exist(kept, classes_a_chunk):
    """No tensor of either pass exceeds a chunk of logits, or what may be kept of the products,
    though all logits are 10 times that."""
    embeddings, centers, labels = problem(batch=16, classes=5000, dim=1)
    classes_a_chunk(250, kept_bytes=16 * 8 * kept)
    with LargestTensor() as largest:
        loss, (softmax,) = passes(embeddings, whole(centers, labels), ArcFace())
        softmax.gradients(loss.terms, share=1.0, into=None)
    # The gradient of all centers, of one dimension here, is that of the update, too.
    assert largest.numel == max(16 * 250, 16 * kept, 5000)


def test_chunk_size_follows_the_batch_and_has_a_floor():
    assert chunk_size(128, torch.float32) * 128 * 4 <= 2 << 20
    assert chunk_size(128, torch.float32) > chunk_size(300, torch.float32)
    assert chunk_size(1 << 20, torch.float32) == 1024


@pytest.mark.parametrize("compute_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("subcenters", [1, 2])
def test_both_passes_are_graph_safe(compute_dtype, subcenters, classes_a_chunk):
    classes_a_chunk(3)
    embeddings, centers, labels = problem(dtype=torch.float32, dim=8)
    rows = torch.tensor(sorted({*labels.tolist(), 0}))
    groups = torch.zeros(len(rows), dtype=torch.int32), torch.zeros(6, dtype=torch.int32)
    sample = Sample(rows, torch.searchsorted(rows, labels), *groups)
    wide = centers.repeat(1, subcenters)
    for margin in (ArcFace(filter_above=0.5), CurricularFace()):
        with GraphSafety():
            loss, (softmax,) = passes(
                embeddings,
                [Part(wide, sample)],
                margin,
                compute_dtype=compute_dtype,
                subcenters=subcenters,
            )
            softmax.gradients(loss.terms, share=1.0, into=None)
