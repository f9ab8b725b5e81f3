"""What a step leaves as it was: one that is not finite, skipped, replaced, or only evaluated."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from heads import (
    MARGINS,
    AdaFace,
    ArcFace,
    Margin,
    PartialFC,
    SphereFace,
    StepContext,
    Target,
    create_margin,
    distributed_loss,
)
from tests.heads.head_reference import scalar_head
from tests.heads.small_head import CLASSES, DIM, batch, build, state, train, unchanged


def poison_embedding(embeddings: Tensor, labels: Tensor, head: PartialFC) -> None:
    embeddings.data[2, 3] = math.nan


def poison_label_high(embeddings: Tensor, labels: Tensor, head: PartialFC) -> None:
    labels[1] = CLASSES


def poison_label_negative(embeddings: Tensor, labels: Tensor, head: PartialFC) -> None:
    labels[1] = -1


def poison_center(embeddings: Tensor, labels: Tensor, head: PartialFC) -> None:
    head.centers[labels[0], 0] = math.inf


@pytest.mark.parametrize("sample_rate", [1.0, 0.3])
@pytest.mark.parametrize(
    "poison", [poison_embedding, poison_label_high, poison_label_negative, poison_center]
)
def test_a_non_finite_step_changes_nothing(poison, sample_rate):
    """A label that no class has counts as one: the loss and all gradients are NaN."""
    head = build(sample_rate=sample_rate)
    train(head, seed=1)
    embeddings, labels = batch()
    poison(embeddings, labels, head)
    before = state(head)
    loss = head(embeddings, labels)
    loss.backward()
    head.step(0.1)
    assert loss.isnan()
    assert embeddings.grad.isnan().all()
    assert unchanged(head, before)


@dataclass(frozen=True, kw_only=True)
class Bottomless(Margin):
    """A margin whose losses are finite but whose float32 sum over the batch is not."""

    def bend(self, cosine: Tensor, norms: Tensor, context: StepContext) -> Target:
        return Target(cosine - 4e36, torch.ones_like(cosine))


def test_an_infinite_loss_changes_nothing_though_its_gradients_are_finite():
    head = build(Bottomless(), dtype=torch.float32, compute_dtype=torch.float32)
    before = state(head)
    embeddings, labels = batch(dtype=torch.float32)
    loss = head(embeddings, labels)
    loss.backward()
    head.step(0.1)
    assert loss.isposinf()
    assert torch.isfinite(embeddings.grad).all()
    assert unchanged(head, before)


@pytest.mark.parametrize("sample_rate", [1.0, 0.3])
def test_skip_changes_nothing_and_a_false_skip_is_no_skip(sample_rate):
    heads = [build(sample_rate=sample_rate) for _ in range(3)]
    embeddings, labels = batch()
    for head, skip in zip(heads, [None, torch.tensor(False), torch.tensor(True)]):
        train(head, seed=1)
        before = state(head)
        head(embeddings, labels)
        head.step(0.1, skip=skip)
        assert unchanged(head, before) == (skip is not None and skip.item())
    assert torch.equal(heads[0].centers, heads[1].centers)


def test_a_second_forward_replaces_the_gradients_that_wait():
    once, twice = build(), build()
    first, second = batch(0), batch(1)
    once(*second)
    twice(*first)
    twice(*second)
    once.step(0.1)
    twice.step(0.1)
    assert torch.equal(once.centers, twice.centers)


def test_step_without_gradients_is_an_error():
    head = build()
    with pytest.raises(RuntimeError, match="training mode"):
        head.step(0.1)
    train(head, seed=0)
    with pytest.raises(RuntimeError, match="training mode"):
        head.step(0.1)


@pytest.mark.parametrize("at_once", [1, 7, 1000])
def test_evaluation_is_over_all_classes_and_leaves_no_trace(at_once, monkeypatch):
    monkeypatch.setattr(distributed_loss, "_EVALUATED_AT_ONCE", at_once)
    head = build(sample_rate=0.3).eval()
    before = state(head)
    embeddings, labels = batch()
    loss = head(embeddings, labels)
    expected = scalar_head(embeddings, head.centers, labels, margin=ArcFace())
    torch.testing.assert_close(loss, expected.loss, rtol=1e-9, atol=0)
    assert not loss.requires_grad
    assert head.steps == 0
    with pytest.raises(RuntimeError, match="training mode"):
        head.step(0.1)
    assert unchanged(head, before)


@pytest.mark.parametrize("options", [{}, {"sample_rate": 0.3}])
def test_evaluation_amid_a_step_leaves_the_waiting_gradients(options):
    found = []
    for evaluate in (False, True):
        head = build(dtype=torch.float32, compute_dtype=torch.bfloat16, **options)
        head(*batch(0, torch.float32))
        if evaluate:
            head.eval()(*batch(1, torch.float32))
            head.train()
        head.step(0.1)
        found.append(head.centers)
    assert torch.equal(*found)


@pytest.mark.parametrize("elements", [1e20, 1e30])
def test_a_norm_that_overflows_is_not_a_sound_step(elements):
    head = build(AdaFace(), dtype=torch.float32, compute_dtype=torch.float32)
    before, statistics = state(head), head.margin_state.clone()
    embeddings, labels = batch(dtype=torch.float32)
    head((embeddings.detach() * elements).requires_grad_(), labels)
    head.step(0.1)
    assert unchanged(head, before)
    assert torch.equal(head.margin_state, statistics)
    assert head.nonfinite_steps == 1


@pytest.mark.parametrize("rate", [math.nan, math.inf])
def test_a_rate_that_is_not_finite_changes_nothing(rate):
    head = build()
    before = state(head)
    head(*batch())
    head.step(torch.tensor(rate))
    assert unchanged(head, before)


@pytest.mark.parametrize("side", [-1.0, 1.0])
@pytest.mark.parametrize("margin", [*map(create_margin, MARGINS), SphereFace(margin=7.5)], ids=str)
def test_in_float16_rows_on_the_axis_of_their_center_cost_no_step(margin, side):
    """Slopes without bound: two such rows of a class, and a rival in the center's very place."""
    head = PartialFC(CLASSES, DIM, margin, compute_dtype=torch.float16)
    head.centers[1] = head.centers[0]
    embeddings, labels = batch(dtype=torch.float32)
    labels[:2] = 0
    embeddings = torch.cat([side * head.centers[:1].expand(2, -1), embeddings.detach()[2:]])
    before = head.centers.clone()
    loss = head(embeddings.requires_grad_(), labels)
    loss.backward()
    head.step(0.1)
    assert head.nonfinite_steps == 0
    assert not torch.equal(head.centers, before)
    assert embeddings.grad.isfinite().all()


@pytest.mark.parametrize("length", [1e-30, 1e30])
def test_centers_of_extreme_length_train(length):
    head = build(dtype=torch.float32, compute_dtype=torch.float32)
    head.centers[0] *= length
    head(*batch(dtype=torch.float32))
    head.step(1e-3)
    assert head.nonfinite_steps == 0
