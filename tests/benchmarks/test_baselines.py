"""The baseline is arcface_torch's arithmetic, and so is our head where the two should agree."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from benchmarks.baselines import ArcfaceTorchHead
from heads import ArcFace, PartialFC

# Wide enough that no loss comes near the baseline's cap.
CLASSES, DIM, BATCH = 200, 128, 12


def build(sample_rate: float = 1.0, **options) -> ArcfaceTorchHead:
    return ArcfaceTorchHead(CLASSES, DIM, sample_rate=sample_rate, seed=3, **options)


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    embeddings = 3 * torch.randn(BATCH, DIM, generator=generator)
    labels = torch.randint(0, CLASSES, (BATCH,), generator=generator)
    labels[-1] = labels[0]
    return embeddings.requires_grad_(), labels


def close(found: Tensor, wanted: Tensor) -> bool:
    return bool((found - wanted).abs().max() < 1e-4 * wanted.abs().max())


def test_it_equals_partial_fc_without_sampling():
    """Three steps, each from the last one's weights and momentum."""
    theirs = build()
    margin = ArcFace(margin=0.5, gradient="straight_through")
    ours = PartialFC(CLASSES, DIM, margin, momentum=0.9, weight_decay=5e-4)
    with torch.no_grad():
        ours.centers.copy_(theirs.weight)
    for step in range(3):
        results = []
        for head in (theirs, ours):
            embeddings, labels = batch(step)
            loss = head(embeddings, labels)
            loss.backward()
            head.step(0.1)
            results.append((loss.detach(), embeddings.grad))
        for found, wanted in zip(*results, strict=True):
            assert close(found, wanted)
        assert close(theirs.weight.detach(), ours.centers)


def test_the_gradients_are_those_of_torchs_cross_entropy():
    """The margin as a constant shift of the target, which is what straight-through means."""
    head = build()
    embeddings, labels = batch(0)
    loss = head(embeddings, labels)
    (2 * loss).backward()

    copy = embeddings.detach().clone().requires_grad_()
    weight = head.weight.detach().clone().requires_grad_()
    cosine = normalize(copy) @ normalize(weight).T
    rows = torch.arange(BATCH)
    target = cosine[rows, labels].detach()
    shift = torch.zeros_like(cosine)
    shift[rows, labels] = torch.cos(torch.acos(target) + 0.5) - target
    expected = cross_entropy(64 * (cosine + shift), labels)
    (2 * expected).backward()
    for found, wanted in [
        (loss, expected),
        (embeddings.grad, copy.grad),
        (head.weight.grad, weight.grad),
    ]:
        assert close(found, wanted)


def test_sampling_leaves_classes_out_of_the_loss_but_moves_every_row():
    head = build(sample_rate=0.25)
    before = head.weight.detach().clone()
    embeddings, labels = batch(0)
    head(embeddings, labels).backward()
    assert head.weight.grad.shape == before.shape
    touched = (head.weight.grad != 0).any(1)
    assert touched.sum() == 50
    assert touched[labels].all()
    head.step(0.1)
    untouched = ~touched
    # Weight decay alone: w · (1 - lr · 5e-4).
    torch.testing.assert_close(head.weight[untouched].detach(), before[untouched] * (1 - 5e-5))
    assert not torch.equal(head.weight[untouched], before[untouched])
    assert head.weight.grad is None


def test_two_steps_sample_different_negatives():
    head = build(sample_rate=0.25)
    touched = []
    for _ in range(2):
        embeddings, labels = batch(0)
        head.weight.grad = None
        head(embeddings, labels).backward()
        touched.append((head.weight.grad != 0).any(1))
    assert not torch.equal(*touched)


def test_more_positives_than_the_sample_holds_change_its_shape():
    head = build(sample_rate=0.01)  # 2 classes
    embeddings, labels = batch(0)
    head(embeddings, labels).backward()
    assert (head.weight.grad != 0).any(1).sum() == labels.unique().shape[0]


def test_the_loss_of_a_sample_is_capped():
    head = build()
    with torch.no_grad():
        head.weight.copy_(torch.eye(CLASSES, DIM) + 1e-3)
    embeddings = -head.weight[:1].detach() + head.weight[1:2].detach()
    assert head(embeddings, torch.tensor([0])).item() == pytest.approx(-math.log(1e-30), rel=1e-5)


def test_autocast_rounds_the_products_alone():
    embeddings, labels = batch(0)
    full, half = build()(embeddings, labels), build(autocast=True)(embeddings, labels)
    assert full.dtype == half.dtype == torch.float32
    assert full != half
    torch.testing.assert_close(full, half, rtol=0.02, atol=0)
    with torch.autocast("cpu"):  # the head's own choice holds inside the training loop's
        assert torch.equal(full, build()(embeddings, labels))
