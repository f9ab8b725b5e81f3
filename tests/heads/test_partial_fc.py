"""PartialFC on one process: exact gradients, SGD as torch's, nothing touched that need not be."""

from __future__ import annotations

import copy
import math
import pickle
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from heads import (
    MARGINS,
    AdaFace,
    ArcFace,
    CosFace,
    MagFace,
    Margin,
    PartialFC,
    Softmax,
    SphereFace,
    StepContext,
    Target,
    UniFace,
    create_margin,
    distributed_loss,
)
from heads.head_step import margin_key
from tests.graph_safety import GraphSafety
from tests.heads.head_reference import scalar_head

CLASSES, DIM, BATCH = 40, 8, 6


def build(margin=None, **options) -> PartialFC:
    options = {"dtype": torch.float64, "compute_dtype": torch.float64, **options}
    return PartialFC(CLASSES, DIM, margin or ArcFace(), **options)


def batch(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    embeddings = 5 * torch.randn(BATCH, DIM, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, CLASSES, (BATCH,), generator=generator)
    labels[-1] = labels[0]
    return embeddings.to(dtype).requires_grad_(), labels


def state(head: PartialFC) -> tuple[Tensor, Tensor]:
    return head.centers.clone(), head.velocity.clone()


def margin_context(head: PartialFC, rows: int) -> StepContext:
    """What the head tells its margin at the next step."""
    return StepContext(
        head.margin_factor.clone(),
        head.margin_state.clone(),
        margin_key(head.seed, head.steps),
        torch.arange(rows),
        head.learned.clone(),
    )


def unchanged(head: PartialFC, before: tuple[Tensor, Tensor]) -> bool:
    return torch.equal(head.centers, before[0]) and torch.equal(head.velocity, before[1])


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


def train(head: PartialFC, seed: int) -> float:
    embeddings, labels = batch(seed)
    loss = head(embeddings, labels)
    loss.backward()
    head.step(0.1)
    return loss.item()


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
