"""A step of several forwards equals one of a batch that is as large as all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from heads import (
    ArcFace,
    CurricularFace,
    ElasticArcFace,
    GroupClasses,
    MagFace,
    Margin,
    PartialFC,
    UniFace,
)
from heads.passes import cosine_softmax
from tests.graph_safety import GraphSafety
from tests.ranks import run_ranks
from training.distributed import World

CLASSES, DIM, BATCH, COUNT = 50, 8, 4, 3

OPTIONS = [
    {},
    {"sample_rate": 0.3},
    {"sample_rate": 0.0},
    {"group_sampling": GroupClasses(groups=25, scope="sample")},
    {"subcenters": 2, "sample_rate": 0.3},
]
MARGINS = [ArcFace(), ElasticArcFace(), MagFace(), ArcFace(filter_above=0.3), UniFace()]


def build(margin: Margin, dtype: torch.dtype = torch.float64, **options) -> PartialFC:
    options = {"dtype": dtype, "compute_dtype": dtype, **options}
    return PartialFC(CLASSES, DIM, margin, seed=3, **options)


def batch(seed: int, rows: int = BATCH * COUNT) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    embeddings = 5 * torch.randn(rows, DIM, generator=generator, dtype=torch.float64)
    return embeddings, torch.randint(0, CLASSES, (rows,), generator=generator)


def at_once(head: PartialFC, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    leaf = embeddings.clone().requires_grad_()
    loss = head(leaf, labels)
    loss.backward()
    head.step(0.2)
    return loss.detach(), leaf.grad


def in_parts(head: PartialFC, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    leaf = embeddings.clone().requires_grad_()
    head.begin_step(labels.view(COUNT, -1))
    losses = []
    for rows, ids in zip(leaf.chunk(COUNT), labels.chunk(COUNT)):
        loss = head(rows, ids)
        loss.backward()
        losses.append(loss.detach())
    head.step(0.2)
    return torch.stack(losses).sum(), leaf.grad


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("margin", MARGINS, ids=str)
def test_three_micro_batches_equal_one_batch(margin, options):
    """The loss, the embeddings' gradients, and centers and momentum after three steps."""
    whole, parts = build(margin, **options), build(margin, **options)
    for seed in range(3):
        expected = at_once(whole, *batch(seed))
        torch.testing.assert_close(in_parts(parts, *batch(seed)), expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(parts.centers, whole.centers, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(parts.velocity, whole.velocity, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(parts.learned, whole.learned, rtol=1e-12, atol=0)
    assert parts.steps == 3


@pytest.mark.parametrize(
    ("compute_dtype", "error"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)]
)
def test_single_precision_micro_batches_equal_one_batch(compute_dtype, error):
    options = {"dtype": torch.float32, "compute_dtype": compute_dtype, "sample_rate": 0.3}
    whole, parts = build(ArcFace(), **options), build(ArcFace(), **options)
    embeddings, labels = batch(0)
    expected = at_once(whole, embeddings.float(), labels)
    found = in_parts(parts, embeddings.float(), labels)
    for one, other in zip((*found, parts.velocity), (*expected, whole.velocity)):
        assert (one - other).abs().max() <= error * other.abs().max()


def check_ranks(world: World) -> list[Tensor]:
    """Every rank's rows of micro-batches; the reference is one process on what all had."""
    found = []
    for options in OPTIONS[:2]:
        head = build(ElasticArcFace(), **options)
        embeddings, labels = batch(0, world.world_size * COUNT * BATCH)
        per_rank = COUNT * BATCH
        mine = slice(world.rank * per_rank, (world.rank + 1) * per_rank)
        found += [*in_parts(head, embeddings[mine], labels[mine]), head.centers]
    return found


@pytest.mark.slow
def test_micro_batches_of_two_ranks_equal_one_batch(tmp_path: Path):
    """At rate 1; a sample differs from rank to rank, so at 0.3 only the ranks' losses agree."""
    first, second = run_ranks(check_ranks, world_size=2, folder=tmp_path)
    whole = build(ElasticArcFace())
    loss, grad = at_once(whole, *batch(0, 2 * COUNT * BATCH))
    for found in (first, second):
        torch.testing.assert_close(found[0], loss, rtol=1e-9, atol=0)
    torch.testing.assert_close(torch.cat([first[1], second[1]]), grad, rtol=1e-9, atol=1e-12)
    centers = torch.cat([first[2], second[2]])
    torch.testing.assert_close(centers, whole.centers, rtol=1e-9, atol=1e-12)
    assert first[3] == second[3]


def test_statistics_move_on_with_every_micro_batch():
    """CurricularFace's mean cosine: the second forward begins where the first has left it."""
    head = build(CurricularFace())
    embeddings, labels = batch(0)
    in_parts(head, embeddings, labels)
    single = build(CurricularFace())
    single.centers.copy_(build(CurricularFace()).centers)
    for rows, ids in zip(embeddings.chunk(COUNT), labels.chunk(COUNT)):
        single(rows, ids)
        single.step(0.0)
    torch.testing.assert_close(head.margin_state, single.margin_state, rtol=1e-12, atol=0)


def test_one_bad_micro_batch_stops_the_whole_step():
    head = build(ArcFace())
    before = head.centers.clone()
    embeddings, labels = batch(0)
    embeddings[0, 0] = torch.nan  # of the first; the last is sound
    in_parts(head, embeddings, labels)
    assert torch.equal(head.centers, before)
    assert not head.velocity.any()
    assert head.nonfinite_steps == 1
    in_parts(head, *batch(1))
    assert not torch.equal(head.centers, before)


def test_labels_that_were_not_announced_make_the_loss_nan():
    head = build(ArcFace())
    embeddings, labels = batch(0)
    head.begin_step(labels.view(COUNT, -1))
    assert head(embeddings[:BATCH], labels[:BATCH].flip(0)).isnan()


def test_steps_of_one_and_of_several_forwards_alternate():
    head, other = build(ArcFace(), sample_rate=0.3), build(ArcFace(), sample_rate=0.3)
    for seed in range(4):
        (in_parts if seed % 2 else at_once)(head, *batch(seed))
        at_once(other, *batch(seed))
    torch.testing.assert_close(head.centers, other.centers, rtol=1e-9, atol=1e-12)


def test_misuse_is_named():
    head = build(ArcFace())
    embeddings, labels = batch(0)
    with pytest.raises(ValueError, match=r"shape \(k, B\)"):
        head.begin_step(labels)
    with pytest.raises(ValueError, match=r"torch.int64"):
        head.begin_step(labels.view(COUNT, -1).float())
    head.begin_step(labels.view(COUNT, -1))
    head(embeddings[:BATCH], labels[:BATCH])
    with pytest.raises(RuntimeError, match="1 of 3 forwards"):
        head.step(0.1)
    with pytest.raises(RuntimeError, match="sample_rate changed while gradients wait"):
        head.sample_rate = 0.5
    with pytest.raises(ValueError, match="3 labels, expected the 4 that begin_step"):
        head(embeddings[:3], labels[:3])
    for rows in (slice(BATCH, 2 * BATCH), slice(2 * BATCH, 3 * BATCH)):
        head(embeddings[rows], labels[rows])
    with pytest.raises(RuntimeError, match="after 3 of 3"):
        head(embeddings[:BATCH], labels[:BATCH])


@pytest.mark.parametrize("leave", ["begin again", "load"])
def test_a_step_that_was_broken_off_can_be_left(leave):
    head, other = build(ArcFace(), sample_rate=0.3), build(ArcFace(), sample_rate=0.3)
    embeddings, labels = batch(0)
    head.begin_step(labels.view(COUNT, -1))
    head(embeddings[:BATCH], labels[:BATCH])
    if leave == "load":
        head.load_state_dict(other.state_dict())
        with pytest.raises(RuntimeError, match="0 of 1 forwards"):
            head.step(0.1)
        found = at_once(head, *batch(1))
    else:
        found = in_parts(head, *batch(1))
    torch.testing.assert_close(found, at_once(other, *batch(1)), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(head.centers, other.centers, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("announce", [False, True])
def test_products_that_overflow_float16_stop_the_step(announce, monkeypatch):
    """θ = 0 and a rival in the same place, four times: also where the sum is held in float32.

    The terms that would do that are bounded; here they are not.
    """
    monkeypatch.setattr(cosine_softmax, "bound_targets", lambda target, positions, **kinds: target)
    head = PartialFC(2, 2, ArcFace(), compute_dtype=torch.float16)
    head.centers.copy_(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    before = head.centers.clone()
    embeddings, labels = torch.tensor([[2.0, 0.0]] * 4), torch.zeros(4, dtype=torch.int64)
    if announce:
        head.begin_step(labels.view(1, -1))
    loss = head(embeddings, labels)
    head.step(0.1)
    assert torch.isfinite(loss)
    assert head.nonfinite_steps == 1
    assert torch.equal(head.centers, before)
    assert not head.velocity.any()


def test_a_step_of_micro_batches_is_graph_safe():
    head = build(ArcFace(), torch.float32, sample_rate=0.3)
    embeddings, labels = batch(0)
    before = head.centers.clone()
    with GraphSafety():
        in_parts(head, embeddings.float(), labels)
    assert not torch.equal(head.centers, before)
