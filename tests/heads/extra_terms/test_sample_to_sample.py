"""UniTSFace's pairs: equal to scalar loops at any world size, learned, resumed and skipped."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from heads import ArcFace, GroupClasses, Margin, PartialFC, UniFace
from heads.extra_terms import SampleToSample
from tests.graph_safety import GraphSafety
from tests.heads.extra_terms.term_reference import scalar_sample_to_sample
from tests.ranks import run_ranks
from training.distributed import World

CLASSES, DIM, BATCH = 40, 6, 4
TERM = SampleToSample(scale=12, weight=0.7)
SAMPLINGS = {
    "all": {},
    "random": {"sample_rate": 0.4},
    "the batch's own": {"sample_rate": 0.0},
    "groups": {"group_sampling": GroupClasses(groups=11, random_groups=1, scope="sample")},
    "sub-centers": {"subcenters": 2, "sample_rate": 0.4},
}
PRECISIONS = {torch.float64: 1e-9, torch.float32: 1e-4}


def build(*terms, margin: Margin | None = None, dtype=torch.float64, **options) -> PartialFC:
    return PartialFC(
        *(CLASSES, DIM, margin or ArcFace()),
        extra_terms=terms,
        seed=7,
        dtype=dtype,
        compute_dtype=dtype,
        **options,
    )


def batch(step: int, rows: int = BATCH, dtype=torch.float64) -> tuple[Tensor, Tensor]:
    """Five persons, so that some come more than once."""
    generator = torch.Generator().manual_seed(step)
    embeddings = 4 * torch.randn(rows, DIM, generator=generator, dtype=torch.float64)
    return embeddings.to(dtype), torch.randint(0, 5, (rows,), generator=generator)


def train(head: PartialFC, embeddings: Tensor, labels: Tensor, lr: float = 0.1) -> list[Tensor]:
    """What the step shows: the loss and the embeddings' gradient."""
    leaf = embeddings.clone().requires_grad_()
    loss = head(leaf, labels)
    loss.backward()
    head.step(lr)
    return [loss.detach(), leaf.grad]


def check_term(world: World) -> list[str]:
    """With the term and without it, beside the reference; what differs, in words."""
    faults = []
    rows = BATCH * world.world_size
    mine = slice(world.rank * BATCH, (world.rank + 1) * BATCH)
    for margin in (ArcFace(), UniFace()):
        for name, options in SAMPLINGS.items():
            for dtype, tolerance in PRECISIONS.items():
                plain = build(margin=margin, dtype=dtype, momentum=0, **options)
                head = build(TERM, margin=margin, dtype=dtype, momentum=0, **options)
                for step in range(3):
                    embeddings, labels = batch(step, rows, dtype)
                    head.centers.copy_(plain.centers)
                    if isinstance(margin, UniFace):
                        head.learned[0] = plain.learned[0]
                    before = head.learned[-1].item()
                    expected = scalar_sample_to_sample(TERM, embeddings, labels, before)
                    without = train(plain, embeddings[mine], labels[mine])
                    found = train(head, embeddings[mine], labels[mine])
                    moved = expected.learned_grad + head.weight_decay * before
                    after = expected.start if step == 0 else before - 0.1 * moved
                    for what, one, other in (
                        ("loss", found[0] - without[0], expected.loss),
                        ("gradient", found[1] - without[1], expected.embedding_grad[mine]),
                        ("threshold", head.learned[-1:], after),
                        ("centers", head.centers, plain.centers),
                    ):
                        error = (one - other).abs().max()
                        # Differences of sums as large as the margin's loss.
                        if not error <= tolerance * max(1, other.abs().max(), without[0]):
                            faults.append(f"{name} {dtype} step {step}: {what} {error:.2g}")
    return faults


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_term_equals_scalar_loops_on_any_number_of_ranks(world_size, tmp_path: Path):
    for faults in run_ranks(check_term, world_size=world_size, folder=tmp_path):
        assert not faults, "\n".join(faults)


def test_embedding_gradients_are_the_finite_differences():
    head = build(TERM)
    train(head, *batch(0))
    embeddings, labels = batch(1)
    assert torch.autograd.gradcheck(lambda x: head(x, labels), embeddings.requires_grad_())


def test_the_first_step_measures_the_threshold_and_counts_no_pair():
    head, plain = build(TERM), build()
    embeddings, labels = batch(0)
    assert torch.equal(head(embeddings, labels), plain(embeddings, labels))
    train(head, embeddings, labels)
    unit = torch.nn.functional.normalize(embeddings)
    logits = (TERM.scale * unit @ unit.T).masked_fill(labels == labels[:, None], -math.inf)
    torch.testing.assert_close(head.learned[0], logits.logsumexp(1).mean(), rtol=1e-12, atol=0)
    assert not head.learned_velocity.any()


def test_a_batch_of_one_person_has_no_threshold_to_measure():
    head = build(TERM)
    train(head, batch(0)[0], torch.zeros(BATCH, dtype=torch.int64))
    assert head.nonfinite_steps == 0
    assert head.learned.tolist() == [0.0]


def test_the_threshold_is_in_the_state_and_goes_on_from_there():
    head = build(TERM)
    for step in range(3):
        train(head, *batch(step))
    resumed = build(TERM)
    resumed.load_state_dict(copy.deepcopy(head.state_dict()))
    for step in range(3, 5):
        for one, other in zip(train(head, *batch(step)), train(resumed, *batch(step))):
            assert torch.equal(one, other)
    assert all(torch.equal(*pair) for pair in zip(head.buffers(), resumed.buffers(), strict=True))
    assert "learned" not in build().state_dict(), "a head that learns nothing more is as it was"


def check_skip(world: World) -> list[bool]:
    head = build(TERM)
    embeddings, labels = batch(0)
    train(head, embeddings, labels)
    before = [head.centers.clone(), head.learned.clone(), head.learned_velocity.clone()]
    if world.rank == world.world_size - 1:
        embeddings[0, 0] = torch.nan
    loss, grad = train(head, embeddings, labels)
    after = (head.centers, head.learned, head.learned_velocity)
    return [
        bool(loss.isnan() and grad.isnan().all() and head.nonfinite_steps == 1),
        all(torch.equal(*pair) for pair in zip(before, after)),
    ]


@pytest.mark.slow
def test_a_step_that_is_not_finite_changes_nothing_on_any_rank(tmp_path: Path):
    assert run_ranks(check_skip, world_size=2, folder=tmp_path) == [[True, True]] * 2


def test_the_step_is_graph_safe():
    head = build(TERM, dtype=torch.float32)
    embeddings, labels = batch(0, dtype=torch.float32)
    with GraphSafety():
        train(head, embeddings, labels)


def test_micro_batches_are_refused_with_the_reason():
    head = build(TERM)
    labels = batch(0)[1]
    with pytest.raises(ValueError, match=r"SampleToSample looks at .* found 2 micro-batches"):
        head.begin_step(labels.view(2, -1))
    head.begin_step(labels.view(1, -1))


def test_evaluation_is_without_the_term():
    head, plain = build(TERM), build()
    train(head, *batch(0))
    plain.centers.copy_(head.centers)
    assert torch.equal(head.eval()(*batch(1)), plain.eval()(*batch(1)))


def test_it_draws_a_persons_images_together():
    """Gradient descent on the embeddings themselves, with the centers held."""
    head = build(SampleToSample(), margin=ArcFace(scale=1))
    embeddings, labels = batch(3, rows=16)
    same = (labels == labels[:, None]) & ~torch.eye(16, dtype=torch.bool)

    def gap() -> float:
        unit = torch.nn.functional.normalize(embeddings)
        cosine = unit @ unit.T
        return float(cosine[same].mean() - cosine[labels != labels[:, None]].mean())

    before = gap()
    for _ in range(50):
        _, grad = train(head, embeddings, labels, lr=0.01)
        embeddings -= 0.5 * grad
    assert gap() > before + 0.5
