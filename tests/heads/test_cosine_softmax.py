"""The chunked softmax: equal to the dense one, whatever the chunk, the split and the precision."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize
from torch.utils._python_dispatch import TorchDispatchMode

from heads import ArcFace, Margin, Softmax, create_margin
from heads.cosine_softmax import (
    Classes,
    chunk_size,
    combine,
    softmax_gradients,
    softmax_statistics,
)
from tests.graph_safety import GraphSafety
from tests.heads.head_reference import scalar_head


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


def run(
    embeddings: Tensor,
    parts: list[Classes],
    margin: Margin,
    *,
    chunk: int = 1024,
    compute_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """What PartialFC does, with the ranks one after another: loss, embedding and center grads."""
    options: dict[str, Any] = {
        "scale": margin.scale,
        "compute_dtype": compute_dtype or embeddings.dtype,
        "chunk": chunk,
    }
    norms = embeddings.norm(dim=1, keepdim=True)
    unit = embeddings / norms
    negatives, targets = zip(*(softmax_statistics(unit, part, **options) for part in parts))
    loss, terms = combine(
        torch.stack(negatives).logsumexp(0), torch.stack(targets).sum(0), norms[:, 0], margin
    )
    found = [
        softmax_gradients(
            unit,
            part,
            terms,
            out=embeddings.new_empty(part.count, embeddings.shape[1]),
            **options,
        )
        for part in parts
    ]
    assert all(gradients.finite for gradients in found)
    grad = torch.stack([gradients.embeddings for gradients in found]).sum(0)
    grad = (grad - (grad * unit).sum(1, keepdim=True) * unit) / norms
    return loss, grad, [gradients.centers for gradients in found]


def relative_error(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected).abs().max() / expected.abs().max()).item()


# A float32 cosine of 0.9999 knows 1 - cos², and with it the exact slope, to three or four digits.
@pytest.mark.parametrize(("make_problem", "error32"), [(problem, 1e-4), (hard_problem, 1e-3)])
@pytest.mark.parametrize("gradient", ["exact", "straight_through"])
@pytest.mark.parametrize(
    ("name", "margin"), [("softmax", 0.0), ("cosface", 0.4), ("arcface", 0.5), ("arcface", 1.2)]
)
def test_loss_and_gradients_match_scalar_loops(name, margin, gradient, make_problem, error32):
    params = {} if name == "softmax" else {"margin": margin}
    bend = create_margin(name, gradient=gradient, **params)
    for dtype, tolerance in [(torch.float64, 1e-9), (torch.float32, error32)]:
        embeddings, centers, labels = make_problem(dtype=dtype)
        expected = scalar_head(
            embeddings, centers, labels, name=name, margin=margin, gradient=gradient
        )
        whole = Classes(centers, None, labels)
        loss, embedding_grad, (center_grad,) = run(embeddings, [whole], bend, chunk=4)
        assert loss.dtype == embedding_grad.dtype == center_grad.dtype == dtype
        assert relative_error(loss, expected.loss) < tolerance
        assert relative_error(embedding_grad, expected.embedding_grad) < tolerance
        assert relative_error(center_grad, expected.center_grad) < tolerance


def test_without_a_margin_it_is_cross_entropy_of_the_cosines():
    embeddings, centers, labels = problem()
    leaves = embeddings.clone().requires_grad_(), centers.clone().requires_grad_()
    dense = cross_entropy(64 * normalize(leaves[0]) @ normalize(leaves[1]).T, labels)
    expected = torch.autograd.grad(dense, leaves)
    for margin in (Softmax(), ArcFace(margin=0.0), create_margin("cosface", margin=0.0)):
        whole = Classes(centers, None, labels)
        loss, embedding_grad, (center_grad,) = run(embeddings, [whole], margin)
        torch.testing.assert_close(loss, dense.detach(), rtol=1e-9, atol=0)
        torch.testing.assert_close(embedding_grad, expected[0], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(center_grad, expected[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("chunk", [1, 2, 3, 10, 11])
def test_the_chunk_does_not_matter(chunk):
    """Also with one class a chunk, where a chunk's only class is the row's own and leaves."""
    embeddings, centers, labels = problem()
    whole = Classes(centers, None, labels)
    one_chunk = run(embeddings, [whole], ArcFace())
    chunked = run(embeddings, [whole], ArcFace(), chunk=chunk)
    torch.testing.assert_close(chunked, one_chunk, rtol=1e-12, atol=1e-13)


def test_classes_split_over_ranks_give_the_whole():
    """Uneven parts, one of them empty, combined by nothing but the two statistics."""
    embeddings, centers, labels = problem()
    loss, embedding_grad, (center_grad,) = run(
        embeddings, [Classes(centers, None, labels)], ArcFace()
    )
    parts = []
    for start, stop in [(0, 4), (4, 10), (10, 11), (11, 11)]:
        mine = (labels >= start) & (labels < stop)
        parts.append(Classes(centers[start:stop], None, torch.where(mine, labels - start, -1)))
    split_loss, split_embedding_grad, split_center_grads = run(embeddings, parts, ArcFace())
    torch.testing.assert_close(split_loss, loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(split_embedding_grad, embedding_grad, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(torch.cat(split_center_grads), center_grad, rtol=1e-10, atol=1e-13)


def test_sampled_rows_are_the_softmax_over_those_rows():
    embeddings, centers, labels = problem()
    rows = torch.tensor(sorted({*labels.tolist(), 0, 7}))
    positions = torch.searchsorted(rows, labels)
    sampled = run(embeddings, [Classes(centers, rows, positions)], ArcFace(), chunk=3)
    alone = run(embeddings, [Classes(centers[rows], None, positions)], ArcFace(), chunk=3)
    torch.testing.assert_close(sampled, alone, rtol=0, atol=0)


def test_a_single_class_has_no_negatives_and_no_loss():
    embeddings, centers, _ = problem(classes=1)
    loss, embedding_grad, (center_grad,) = run(
        embeddings, [Classes(centers, None, torch.zeros(6, dtype=torch.int64))], ArcFace()
    )
    assert loss == 0
    assert not embedding_grad.any()
    assert not center_grad.any()


def test_float32_survives_cosines_where_plain_exponentials_underflow():
    """All cosines near -1 at scale 200: exp(-200) is 0 in float32, yet the loss is exact."""
    centers = torch.randn(9, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    centers = 0.01 * centers + torch.ones(8)
    embeddings = -torch.ones(4, 8) + 0.01 * torch.arange(32.0).view(4, 8)
    labels = torch.tensor([0, 3, 8, 3])
    expected = scalar_head(embeddings, centers.float(), labels, name="softmax", scale=200.0)
    loss, embedding_grad, (center_grad,) = run(
        embeddings, [Classes(centers.float(), None, labels)], Softmax(scale=200.0), chunk=2
    )
    assert relative_error(loss, expected.loss) < 1e-4
    assert relative_error(embedding_grad, expected.embedding_grad) < 1e-3
    assert relative_error(center_grad, expected.center_grad) < 1e-3


def test_a_zero_center_neither_pulls_nor_moves():
    embeddings, centers, labels = problem()
    centers[labels[0] - 1] = 0
    loss, embedding_grad, (center_grad,) = run(
        embeddings, [Classes(centers, None, labels)], ArcFace()
    )
    assert torch.isfinite(loss)
    assert torch.isfinite(embedding_grad).all()
    assert not center_grad[labels[0] - 1].any()


@pytest.mark.parametrize(
    ("compute_dtype", "tolerance"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)]
)
def test_half_precision_products_stay_close_to_float32(compute_dtype, tolerance):
    embeddings, centers, labels = problem(batch=32, classes=500, dim=64, dtype=torch.float32)
    whole = Classes(centers, None, labels)
    full = run(embeddings, [whole], ArcFace(), chunk=128)
    half = run(embeddings, [whole], ArcFace(), chunk=128, compute_dtype=compute_dtype)
    assert half[0].dtype == half[1].dtype == half[2][0].dtype == torch.float32
    for found, expected in zip((*half[:2], half[2][0]), (*full[:2], full[2][0])):
        error = (found - expected).norm() / expected.norm()
        assert 0 < error < tolerance


def test_float16_keeps_probabilities_that_are_subnormal_in_it():
    """Every negative at the same cosine: each has p = 2.5e-8, half the smallest float16."""
    classes = 4000
    centers = torch.tensor([[0.0, 1.0]]).repeat(classes, 1)
    embeddings, labels = torch.tensor([[2.0, 0.0]]), torch.tensor([0])
    centers[0] = torch.tensor([1.0, 0.0])
    scale = -math.log(2.5e-8)
    whole = Classes(centers, None, labels)
    full = run(embeddings, [whole], Softmax(scale=scale))
    half = run(embeddings, [whole], Softmax(scale=scale), compute_dtype=torch.float16)
    torch.testing.assert_close(half[2][0][1:], full[2][0][1:], rtol=0.02, atol=0)
    torch.testing.assert_close(half[1], full[1], rtol=0.02, atol=1e-7)


def test_float16_saturates_where_a_slope_passes_its_range():
    """θ = 0 and a rival in the same place: a slope of 1,400 that would otherwise be infinite."""
    centers = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    whole = Classes(centers, None, torch.tensor([0]))
    loss, embedding_grad, (center_grad,) = run(
        centers[:1], [whole], ArcFace(), compute_dtype=torch.float16
    )
    for result in (loss, embedding_grad, center_grad):
        assert torch.isfinite(result).all()


def test_a_non_finite_center_gradient_is_reported():
    embeddings, centers, labels = problem()
    unit = normalize(embeddings)
    options = {"scale": 64.0, "compute_dtype": torch.float64, "chunk": 4}
    healthy = Classes(centers, None, labels)
    negative, target = softmax_statistics(unit, healthy, **options)
    _, terms = combine(negative, target, torch.ones(6), ArcFace())
    centers[10, 0] = math.inf
    out = torch.empty_like(centers)
    assert not softmax_gradients(unit, healthy, terms, out=out, **options).finite


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements any operator's result had."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.numel = max(self.numel, result.numel())
        return result


def test_the_logits_of_all_classes_never_exist():
    """No tensor of either pass exceeds a chunk of logits, though all logits are 20 times that."""
    embeddings, centers, labels = problem(batch=16, classes=5000, dim=2)
    whole = Classes(centers, None, labels)
    with LargestTensor() as largest:
        run(embeddings, [whole], ArcFace(), chunk=250)
    # `out` is the gradient of all centers, which the caller keeps.
    assert largest.numel == max(16 * 250, 5000 * 2)
    with LargestTensor() as largest:
        unit = normalize(embeddings)
        softmax_statistics(unit, whole, scale=64.0, compute_dtype=torch.float64, chunk=250)
    assert largest.numel == 16 * 250


def test_chunk_size_follows_the_batch_and_has_a_floor():
    assert chunk_size(128, 512, torch.float32) * (2 * 128 + 512) * 4 <= 16 << 20
    assert chunk_size(128, 512, torch.float32) > chunk_size(1024, 512, torch.float32)
    assert chunk_size(1 << 20, 512, torch.float32) == 1024


@pytest.mark.parametrize("compute_dtype", [torch.float32, torch.bfloat16])
def test_both_passes_are_graph_safe(compute_dtype):
    embeddings, centers, labels = problem(dtype=torch.float32)
    rows = torch.tensor(sorted({*labels.tolist(), 0}))
    sampled = Classes(centers, rows, torch.searchsorted(rows, labels))
    unit = normalize(embeddings)
    options = {"scale": 64.0, "compute_dtype": compute_dtype, "chunk": 3}
    out = torch.empty(len(rows), 8)
    for margin in (ArcFace(), Softmax(), create_margin("cosface")):
        with GraphSafety():
            negative, target = softmax_statistics(unit, sampled, **options)
            _, terms = combine(negative, target, torch.ones(6), margin)
            softmax_gradients(unit, sampled, terms, out=out, **options)
