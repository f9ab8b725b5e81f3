"""LVFace's penalty by expectations: equal to scalar loops at any world size and sampling."""

from __future__ import annotations

import copy
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from facestream import UserError
from heads import ArcFace, CosFace, GroupClasses, Margin, PartialFC, UniFace
from heads.neighbors.table import HardNegatives
from heads.sampling import EVERYONE
from tests.graph_safety import GraphSafety
from tests.heads.head_reference import first_step, scalar_targets
from tests.heads.test_partial_fc_matrix import gather_sample
from tests.ranks import run_ranks
from training.distributed import World

CLASSES, DIM, BATCH, PENALTY = 20, 6, 4, 0.35
GROUPS = GroupClasses(groups=7, random_groups=1, scope="sample")
SAMPLINGS = {
    "all": {},
    "random": {"sample_rate": 0.4},
    "the batch's own": {"sample_rate": 0.0},
    "groups": {"group_sampling": GROUPS},
    "sub-centers": {"subcenters": 2, "sample_rate": 0.4},
    "neighbors": {
        "sample_rate": 0.5,
        "hard_negatives": HardNegatives(share=0.5, neighbors=3, every=1),
    },
    "narrow": {"centers_dtype": torch.bfloat16},
}


def build(margin: Margin | None = None, dtype=torch.float64, **options) -> PartialFC:
    given = {"expectation_margin": PENALTY, "seed": 7, "dtype": dtype, "compute_dtype": dtype}
    return PartialFC(CLASSES, DIM, margin or CosFace(scale=16), **(given | options))


def batch(step: int, rows: int) -> tuple[Tensor, Tensor]:
    """Of half of the classes, so that they come again and again, and twice in a batch."""
    generator = torch.Generator().manual_seed(step)
    embeddings = 4 * torch.randn(rows, DIM, generator=generator, dtype=torch.float64)
    return embeddings, 2 * torch.randint(0, CLASSES // 2, (rows,), generator=generator)


def cosine_of(one: list[float], other: list[float]) -> float:
    length = math.sqrt(sum(a * a for a in one) * sum(b * b for b in other))
    return sum(a * b for a, b in zip(one, other)) / length if length else 0.0


def scalar_losses(margin: Margin, centers, bank, classes, rows, labels, visible) -> list[float]:
    losses = []
    for i, (row, label) in enumerate(zip(rows, labels)):
        near = [max(cosine_of(row, c) for c in centers[k]) for k in range(len(classes))]
        own = classes.index(label)
        others = [k for k in range(len(classes)) if k != own and visible[i][k]]
        if isinstance(margin, CosFace):
            target = near[own] - margin.margin
        else:
            target = scalar_targets(margin, [near[own]], [1.0], first_step(margin, 1))[0][0].cosine
        s = margin.scale
        total = 1 + sum(math.exp(s * (near[k] - target)) for k in others)
        if any(bank[label]):
            mine = cosine_of(row, bank[label]) - PENALTY
            total += sum(math.exp(s * (cosine_of(row, bank[classes[k]]) - mine)) for k in others)
        losses.append(math.log(total))
    return losses


def scalar_moved(rows, bank, labels) -> list[list[float]]:
    """Each class of the batch moved once, by the mean of its unit embeddings."""
    moved = [list(row) for row in bank]
    for label in set(labels):
        units = [
            [x / math.sqrt(sum(a * a for a in row)) for x in row]
            for row, other in zip(rows, labels)
            if other == label
        ]
        mean = [sum(column) / len(units) for column in zip(*units)]
        kept = 1 / (1 + math.exp(-cosine_of(mean, bank[label]))) if any(bank[label]) else 0.0
        moved[label] = [kept * e + (1 - kept) * x for e, x in zip(bank[label], mean)]
    return moved


def gather_bank(head: PartialFC) -> Tensor:
    part = torch.zeros(CLASSES, DIM, dtype=head.dtype)
    part[head.first_class : head.first_class + len(head.expectations)] = head.expectations
    return head.ranks.all_gather(part).sum(0)


def check_penalty(world: World) -> list[str]:
    faults = []
    mine = slice(world.rank * BATCH, (world.rank + 1) * BATCH)
    for margin in (CosFace(scale=16), ArcFace(scale=16)):
        for name, options in SAMPLINGS.items():
            for dtype, tolerance in ((torch.float64, 1e-6), (torch.float32, 2e-4)):
                head = build(margin, dtype, **options)
                bank = [[0.0] * DIM for _ in range(CLASSES)]
                for step in range(4):
                    embeddings, labels = batch(step, BATCH * world.world_size)
                    leaf = embeddings[mine].to(dtype).requires_grad_()
                    loss = head(leaf, labels[mine])
                    loss.backward()
                    whole = gather_sample(head)
                    groups = labels // -(-CLASSES // 7)
                    visible = (whole.groups == EVERYONE) | (whole.groups == groups[:, None])
                    visible = visible.expand(len(labels), len(whole.classes)).tolist()
                    centers = whole.centers[whole.classes].double()
                    centers = centers.view(len(whole.classes), -1, DIM).tolist()
                    rows, people = embeddings.tolist(), labels.tolist()
                    losses_of = partial(
                        scalar_losses, margin, centers, bank, whole.classes.tolist()
                    )
                    losses = losses_of(rows, people, visible)
                    expected = torch.zeros(BATCH, DIM, dtype=torch.float64)
                    for i in range(BATCH):
                        own = slice(mine.start + i, mine.start + i + 1)
                        for d in range(DIM):
                            ends = []
                            for way in (1e-5, -1e-5):
                                near = list(rows[own.start])
                                near[d] += way
                                ends += losses_of([near], people[own], visible[own])
                            expected[i, d] = (ends[0] - ends[1]) / 2e-5 / len(rows)
                    head.step(0.1)
                    bank = scalar_moved(rows, bank, people)
                    for what, one, other in (
                        ("loss", loss.detach(), torch.tensor(losses).mean()),
                        ("gradient", leaf.grad, expected),
                        ("bank", gather_bank(head), torch.tensor(bank)),
                    ):
                        error = (one.double() - other.double()).abs().max()
                        if not error <= tolerance * other.abs().max().clamp_min(1):
                            faults.append(f"{margin} {name} {dtype} {step}: {what} {error:.2g}")
    return faults


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_penalty_equals_scalar_loops_on_any_number_of_ranks(world_size, tmp_path: Path):
    for faults in run_ranks(check_penalty, world_size=world_size, folder=tmp_path):
        assert not faults, "\n".join(faults)


def trained(steps: int, **options) -> PartialFC:
    head = build(**options)
    for step in range(steps):
        head(*batch(step, 8))
        head.step(0.1)
    return head


def test_the_centers_gradient_is_that_of_the_shared_logarithm():
    head = trained(3, momentum=0.0, weight_decay=0.0)
    embeddings, labels = batch(3, 8)
    centers = head.centers.clone().requires_grad_()
    bank = torch.nn.functional.normalize(head.expectations)
    unit = torch.nn.functional.normalize(embeddings)
    total = 1.0
    for rows, margin, counts in (
        (torch.nn.functional.normalize(centers), head.margin.margin, torch.tensor(True)),
        (bank, PENALTY, head.expectations[labels].any(1)),
    ):
        cosine = unit @ rows.T
        own = cosine.gather(1, labels[:, None])
        others = (16 * (cosine - own + margin)).exp().scatter(1, labels[:, None], 0.0).sum(1)
        total = total + torch.where(counts, others, 0.0)
    loss = total.log().mean()
    loss.backward()
    found = head(embeddings, labels)
    head.step(1.0)
    torch.testing.assert_close(found, loss.detach(), rtol=1e-9, atol=0)
    expected = centers.detach() - centers.grad
    torch.testing.assert_close(head.centers, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("broken", [False, True])
def test_a_skipped_step_changes_nothing(broken):
    head = trained(3)
    head.expectations[0, 0] = -0.0
    before = {name: value.clone() for name, value in head.state_dict().items()}
    embeddings, labels = batch(3, 8)
    if broken:
        embeddings[0, 0] = math.nan
    head(embeddings, labels)
    head.step(0.1, skip=torch.tensor(not broken))
    for name in ("expectations", "centers", "velocity"):
        one, other = head.state_dict()[name], before[name]
        assert torch.equal(one.view(torch.int64), other.view(torch.int64)), name


def test_a_head_goes_on_from_its_state_and_as_a_copy():
    head, other = trained(3), build()
    other.load_state_dict(head.state_dict())
    for one in (other, copy.deepcopy(head), head):
        one(*batch(3, 8))
        one.step(0.1)
    assert torch.equal(other.expectations, head.expectations)
    assert head.expectations.any()


def test_the_step_is_graph_safe():
    head = build(dtype=torch.float32)
    embeddings, labels = batch(0, 8)
    with GraphSafety():
        for _ in range(2):
            head(embeddings.float(), labels)
            head.step(0.1)


def test_without_its_margin_for_a_while_a_step_is_that_of_a_head_without_it():
    """And expectations stay as they are, bit for bit."""
    head, plain = trained(3), build(expectation_margin=None)
    state = head.state_dict()
    kept = state.pop("expectations").clone()
    plain.load_state_dict(state)
    assert kept.any()
    head.expectation_margin = None
    losses = []
    for one in (head, plain):
        losses.append(one(*batch(3, 8)))
        one.step(0.1)
    assert torch.equal(*losses)
    assert torch.equal(head.centers, plain.centers)
    assert torch.equal(head.expectations, kept)
    head.expectation_margin = PENALTY
    assert head(*batch(4, 8)) > plain(*batch(4, 8))
    head.step(0.1)
    assert not torch.equal(head.expectations, kept)


def test_its_margin_changes_between_steps_alone():
    head = build()
    head(*batch(0, 8))
    with pytest.raises(RuntimeError, match="changed while gradients wait"):
        head.expectation_margin = None
    head.expectation_margin = PENALTY  # the same
    with pytest.raises(UserError, match="expectation_margin=nan, expected a finite number"):
        head.expectation_margin = math.nan
    with pytest.raises(UserError, match=r"expectation_margin=0\.2, expected None, as the head was"):
        build(expectation_margin=None).expectation_margin = 0.2


def test_what_it_does_not_go_with_is_named():
    for options, named in (
        ({"expectation_margin": math.inf}, "expectation_margin=inf"),
        ({"place": "host"}, "place='host', expected device with expectation_margin"),
        ({"margin": UniFace()}, "another margin than UniFace"),
    ):
        with pytest.raises(UserError, match=named):
            build(**options)
    with pytest.raises(UserError, match="expectation_margin looks at the whole batch"):
        build().begin_step(torch.zeros(2, 4, dtype=torch.int64))
    with pytest.raises(RuntimeError, match="expectations"):
        build(expectation_margin=None).load_state_dict(build().state_dict())
    with pytest.raises(UserError, match=r"backend='triton'.*expectation_margin"):
        build(backend="triton")
