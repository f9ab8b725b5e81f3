"""PartialFC on one process: exact gradients, SGD as torch's, nothing touched that need not be."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from heads import (
    MARGINS,
    ArcFace,
    CosFace,
    MagFace,
    PartialFC,
    Softmax,
    SphereFace,
    StepContext,
    UniFace,
    create_margin,
)
from heads.head_step import margin_key
from tests.graph_safety import GraphSafety
from tests.heads.head_reference import scalar_head
from tests.heads.small_head import BATCH, CLASSES, DIM, batch, build, state, train, unchanged


def margin_context(head: PartialFC, rows: int) -> StepContext:
    """What the head tells its margin at the next step."""
    return StepContext(
        head.margin_factor.clone(),
        head.margin_state.clone(),
        margin_key(head.seed, head.steps),
        torch.arange(rows),
        head.learned.clone(),
    )


@pytest.mark.parametrize("gradient", ["exact", "straight_through"])
@pytest.mark.parametrize("name", MARGINS)
def test_loss_gradient_and_update_match_scalar_loops(name, gradient):
    margin = create_margin(name, gradient=gradient)
    for dtype, tolerance in [(torch.float64, 1e-9), (torch.float32, 1e-4)]:
        head = build(margin, weight_decay=0.0, dtype=dtype, compute_dtype=dtype)
        centers, _ = state(head)
        embeddings, labels = batch(dtype=dtype)
        context = margin_context(head, BATCH)
        loss = head(embeddings, labels)
        (3 * loss).backward()
        head.step(0.1)
        expected = scalar_head(embeddings, centers, labels, margin=margin, context=context)
        assert (loss - expected.loss).abs() < tolerance * expected.loss
        for found, wanted in [
            (embeddings.grad, 3 * expected.embedding_grad),
            (head.centers, centers.double() - 0.1 * expected.center_grad),
            (head.velocity, expected.center_grad),
        ]:
            assert (found - wanted).abs().max() < tolerance * wanted.abs().max()
        torch.testing.assert_close(head.margin_state.double(), expected.state, rtol=1e-6, atol=0)
        learned = context.learned.double() - 0.1 * expected.learned_grad
        torch.testing.assert_close(head.learned.double(), learned, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", MARGINS)
def test_half_a_margin_lies_between_none_and_the_whole(name):
    """The factor is a tensor that may change from step to step."""
    losses = []
    for factor in (0.0, 0.5, 1.0):
        head = build(create_margin(name))
        head.margin_factor.fill_(factor)
        losses.append(head(*batch()).item())
    if name == "softmax":
        assert losses[0] == losses[1] == losses[2]
    else:
        assert losses[0] < losses[1] < losses[2]


@pytest.mark.parametrize(
    "margin",
    [
        Softmax(),
        CosFace(),
        ArcFace(),
        ArcFace(margin=1.2),
        MagFace(),
        SphereFace(),
        ArcFace(filter_above=0.4),
        UniFace(negative_weight=0.7),
    ],
)
def test_embedding_gradients_are_the_finite_differences(margin):
    head = build(margin)
    embeddings, labels = batch()
    assert torch.autograd.gradcheck(lambda x: head(x, labels), embeddings)


def test_center_gradients_are_the_finite_differences():
    head = build(weight_decay=0.0)
    embeddings, labels = batch()
    with torch.no_grad():
        head(embeddings, labels)
        centers, _ = state(head)
        head.step(1.0)
        gradient = head.velocity.clone()
        step = 1e-6
        for row in (labels[0], labels[1], (labels[0] + 1) % CLASSES):
            for column in (0, DIM - 1):
                ends = []
                for way in (step, -step):
                    head.centers.copy_(centers)
                    head.centers[row, column] += way
                    ends.append(head(embeddings, labels))
                slope = (ends[0] - ends[1]) / (2 * step)
                torch.testing.assert_close(slope, gradient[row, column], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("lr_as", [float, lambda lr: torch.tensor(lr, dtype=torch.float64)])
def test_five_steps_at_rate_one_equal_torch_sgd(lr_as):
    """Momentum and weight decay included, with a learning rate that changes."""
    head = build(momentum=0.9, weight_decay=5e-2)
    weight = nn.Parameter(head.centers.clone())
    sgd = torch.optim.SGD([weight], lr=1.0, momentum=0.9, weight_decay=5e-2)
    for seed, lr in enumerate([0.1, 0.2, 0.05, 0.1, 0.3]):
        embeddings, labels = batch(seed)
        head(embeddings, labels).backward()
        head.step(lr_as(lr))

        cosines = normalize(embeddings) @ normalize(weight).T
        angle = cosines[torch.arange(BATCH), labels].acos() + 0.5
        logits = cosines.scatter(1, labels[:, None], angle.cos()[:, None])
        sgd.param_groups[0]["lr"] = lr
        sgd.zero_grad()
        cross_entropy(64 * logits, labels).backward()
        sgd.step()
        torch.testing.assert_close(head.centers, weight.detach(), rtol=1e-9, atol=1e-9)
        velocity = sgd.state[weight]["momentum_buffer"]
        torch.testing.assert_close(head.velocity, velocity, rtol=1e-9, atol=1e-9)


def test_unsampled_rows_are_bit_unchanged_and_sampled_rows_all_move():
    head = build(sample_rate=0.3)
    for seed in range(4):
        before = state(head)
        embeddings, labels = batch(seed)
        head(embeddings, labels).backward()
        head.step(0.1)
        moved = (head.centers != before[0]).any(1)
        assert moved.sum() == round(0.3 * CLASSES)
        assert moved[labels].all()
        assert torch.equal(head.centers[~moved], before[0][~moved])
        assert torch.equal(head.velocity[~moved], before[1][~moved])


def test_each_training_step_draws_its_own_sample():
    head = build(sample_rate=0.3)
    embeddings, labels = batch()
    samples = []
    for _ in range(3):
        centers, _ = state(head)
        head(embeddings, labels)
        head.step(0.1)
        samples.append((head.centers != centers).any(1))
    assert not torch.equal(samples[0], samples[1])
    assert not torch.equal(samples[1], samples[2])
    assert head.steps == 3


def test_a_sampled_step_is_the_dense_step_over_the_sampled_classes():
    head = build(sample_rate=0.3, weight_decay=0.0)
    centers, _ = state(head)
    embeddings, labels = batch()
    loss = head(embeddings, labels)
    loss.backward()
    head.step(1.0)
    rows = (head.centers != centers).any(1).nonzero().squeeze(1)
    expected = scalar_head(
        embeddings, centers[rows], torch.searchsorted(rows, labels), margin=ArcFace()
    )
    torch.testing.assert_close(loss.detach(), expected.loss, rtol=1e-9, atol=0)
    torch.testing.assert_close(embeddings.grad, expected.embedding_grad, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(head.velocity[rows], expected.center_grad, rtol=1e-9, atol=1e-9)


def test_a_batch_larger_than_the_rate_asks_for_keeps_every_positive():
    head = build(sample_rate=0.01)
    embeddings = torch.randn(30, DIM, dtype=torch.float64)
    labels = torch.arange(30)
    before = state(head)
    assert torch.isfinite(head(embeddings, labels))
    head.step(0.1)
    assert (head.centers != before[0]).any(1)[:30].all()


def test_at_a_rate_of_zero_only_the_batchs_own_classes_take_part():
    """Against the dense step over them; the rows in the slots that are left stay bit for bit."""
    head = build(sample_rate=0.0, weight_decay=0.1)
    for seed in range(3):
        centers, _ = state(head)
        head.velocity.zero_()
        embeddings, labels = batch(seed)
        loss = head(embeddings, labels)
        loss.backward()
        rows = labels.unique()
        assert len(head.last_sample.rows) > len(rows), "a slot is left"
        head.step(0.1)
        expected = scalar_head(
            embeddings, centers[rows], torch.searchsorted(rows, labels), margin=ArcFace()
        )
        torch.testing.assert_close(loss.detach(), expected.loss, rtol=1e-9, atol=0)
        torch.testing.assert_close(embeddings.grad, expected.embedding_grad, rtol=1e-9, atol=1e-9)
        wanted = expected.center_grad + 0.1 * centers[rows]
        torch.testing.assert_close(head.velocity[rows], wanted, rtol=1e-9, atol=1e-9)
        moved = (head.centers != centers).any(1)
        assert moved.nonzero().squeeze(1).tolist() == rows.tolist()


def test_a_batch_of_one_class_has_no_negatives_at_a_rate_of_zero():
    """The loss is 0 and pulls nothing; it is a sound step all the same."""
    head = build(sample_rate=0.0, weight_decay=0.0)
    before = state(head)
    embeddings, labels = batch()
    loss = head(embeddings, labels.fill_(3))
    loss.backward()
    head.step(0.1)
    assert loss == 0
    assert not embeddings.grad.any()
    assert unchanged(head, before)
    assert head.nonfinite_steps == 0


def test_a_head_restored_from_its_state_repeats_the_run_bit_for_bit():
    """Centers, velocity and the sampling's position are all in state_dict."""
    losses = []
    head = build(sample_rate=0.3)
    for seed in range(6):
        if seed == 3:
            saved = {name: value.clone() for name, value in head.state_dict().items()}
        losses.append(train(head, seed))
    entries = {"num_classes", "first_class"}
    assert set(saved) == {"centers", "velocity", "steps", "nonfinite_steps"} | entries

    resumed = build(sample_rate=0.3)
    resumed.load_state_dict(saved)
    assert [train(resumed, seed) for seed in range(3, 6)] == losses[3:]
    assert torch.equal(resumed.centers, head.centers)
    assert torch.equal(resumed.velocity, head.velocity)


def test_a_head_moves_copies_and_is_pickled_with_what_contains_it():
    head = build(sample_rate=0.3, dtype=torch.float32, compute_dtype=torch.float32)
    head(*batch(0, torch.float32))
    head.step(0.1)
    head(*batch(1, torch.float32))  # waits, and does not come along
    copies = [
        copy.deepcopy(head),
        pickle.loads(pickle.dumps(head)),
        nn.Sequential(copy.deepcopy(head)).to("cpu")[0],
    ]
    head(*batch(1, torch.float32))
    head.step(0.1)
    for twin in copies:
        with pytest.raises(RuntimeError, match="0 of 1 forwards"):
            twin.step(0.1)
        twin(*batch(1, torch.float32))
        twin.step(0.1)
        assert torch.equal(twin.centers, head.centers)
    wide = copy.deepcopy(head).double()
    assert wide(*batch(2)).dtype == torch.float64
    wide.step(0.1)
    with pytest.raises(ValueError, match=r"dtype=torch.float16, expected float32 or float64"):
        head.half()
    assert head.centers.dtype == torch.float32, "refused before anything is converted"
    head(*batch(2, torch.float32))
    head.step(0.1)


def test_bfloat16_products_stay_close_to_float32():
    """Ten steps in both, on separable data: the same fall of the loss within 1 %."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 200, (64,), generator=generator)
    embeddings = torch.randn(200, 64, generator=generator)[labels]
    losses = {}
    for compute_dtype in (torch.float32, torch.bfloat16):
        head = PartialFC(200, 64, CosFace(scale=16.0), sample_rate=0.5, compute_dtype=compute_dtype)
        for _ in range(10):
            loss = head(embeddings, labels)
            head.step(0.05)
        losses[compute_dtype] = loss.item()
    initial = PartialFC(200, 64, CosFace(scale=16.0)).eval()(embeddings, labels).item()
    fall = initial - losses[torch.float32]
    assert fall > 0.3 * initial
    assert abs(losses[torch.bfloat16] - losses[torch.float32]) < 0.01 * fall


@pytest.mark.parametrize("compute_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sample_rate", [1.0, 0.3])
def test_the_whole_step_is_graph_safe(sample_rate, compute_dtype):
    """Gather, sample, loss, gradients, update: no host read, no shape that depends on data."""
    head = build(dtype=torch.float32, compute_dtype=compute_dtype, sample_rate=sample_rate)
    embeddings, labels = batch(dtype=torch.float32)
    lr, skip = torch.tensor(0.1), torch.tensor(False)
    before = state(head)
    with GraphSafety():
        head(embeddings, labels).backward()
        head.step(lr, skip=skip)
    assert not unchanged(head, before)
