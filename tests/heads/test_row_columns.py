"""Values that come with each row: weights of its loss, and what a margin reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from facestream import UserError
from heads import MARGINS, ArcFace, CosFace, Margin, PartialFC, StepContext, Target, create_margin
from tests.graph_safety import GraphSafety
from tests.ranks import run_ranks
from training.distributed import World

CLASSES, DIM, BATCH = 40, 8, 6
WEIGHTS = torch.tensor([1.0, 0.0, 0.25, 0.5, 1.0, 0.125])


def rows(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    embeddings = 5 * torch.randn(BATCH, DIM, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, CLASSES, (BATCH,), generator=generator)
    labels[-1] = labels[0]
    return embeddings.to(dtype), labels


def step(weights: Tensor | None, margin: Margin, **options) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, gradient of the embeddings, and what a step without decay adds to the centers."""
    options = {"dtype": torch.float64, "compute_dtype": torch.float64, **options}
    columns = () if weights is None else ("weight",)
    head = PartialFC(CLASSES, DIM, margin, columns=columns, weight_decay=0.0, **options)
    embeddings, labels = rows()
    embeddings.requires_grad_()
    before = head.centers.clone()
    loss = head(embeddings, labels, None if weights is None else weights.unsqueeze(1))
    loss.backward()
    head.step(0.1)
    return loss.detach(), embeddings.grad, head.centers - before


@pytest.mark.parametrize("name", MARGINS)
def test_a_weight_multiplies_its_rows_loss_and_gradients_and_no_others(name):
    margin = create_margin(name)
    plain = step(None, margin)
    for found, wanted in zip(step(torch.ones(BATCH), margin), plain):
        torch.testing.assert_close(found, wanted)
    loss, gradient, moved = step(WEIGHTS, margin)
    torch.testing.assert_close(gradient, WEIGHTS.double()[:, None] * plain[1])
    alone = [step(row, margin) for row in torch.eye(BATCH)]
    torch.testing.assert_close(sum(one[0] for one in alone), plain[0])
    for found, place in ((loss, 0), (moved, 2)):
        parts = [weight * one[place] for weight, one in zip(WEIGHTS.double(), alone)]
        torch.testing.assert_close(found, sum(parts))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_hold_in_every_precision(dtype):
    exact, found = (
        step(WEIGHTS, ArcFace(), dtype=kept, compute_dtype=computed)
        for kept, computed in ((torch.float64, torch.float64), (torch.float32, dtype))
    )
    for one, other in zip(exact, found):
        assert (one - other).abs().max() < 0.03 * one.abs().max()
    assert not found[1][1].any(), "a weight of 0"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", MARGINS)
def test_a_batch_whose_weights_are_all_zero_teaches_nothing(name, dtype):
    found = step(torch.zeros(BATCH), create_margin(name), dtype=torch.float32, compute_dtype=dtype)
    for value in found:
        assert not value.any(), "nor is it NaN, which is true"


@pytest.mark.parametrize("weights", [WEIGHTS, WEIGHTS * (WEIGHTS < 0.3)])
def test_micro_batches_have_weights_of_their_own(weights):
    """One part's may all be 0."""

    def steps(parts: int) -> Tensor:
        head = PartialFC(CLASSES, DIM, CosFace(), columns=("weight",), weight_decay=0.0)
        embeddings, labels = rows(torch.float32)
        if parts > 1:
            head.begin_step(labels.view(parts, -1))
        for part in zip(embeddings.chunk(parts), labels.chunk(parts), weights.chunk(parts)):
            head(part[0].requires_grad_(), part[1], part[2].unsqueeze(1)).backward()
        head.step(0.1)
        return head.centers

    torch.testing.assert_close(steps(3), steps(1))


@dataclass(frozen=True, kw_only=True)
class Careful(Margin):
    """A margin that fades with the quality it is given; unknown quality: the whole margin."""

    columns: ClassVar[tuple[str, ...]] = ("quality",)

    def bend(self, cosine: Tensor, norms: Tensor, context: StepContext) -> Target:
        quality = context.columns["quality"].nan_to_num(1.0)
        return Target(cosine - 0.4 * context.factor * quality)


# Of all rows, of none of the first rank's own, of none at all.
CASES = torch.stack([WEIGHTS, WEIGHTS * (torch.arange(BATCH) > 2), 0 * WEIGHTS])


def on_ranks(world: World) -> list[tuple[Tensor, Tensor]]:
    """The loss and the gradients of this rank's rows, by case."""
    mine = slice(
        world.rank * BATCH // world.world_size, (world.rank + 1) * BATCH // world.world_size
    )
    quality = torch.tensor([0.0, 1.0, 0.5, torch.nan, 0.2, 0.9])
    found = []
    for weights in CASES:
        head = PartialFC(CLASSES, DIM, Careful(), columns=("weight", "quality"))
        embeddings, labels = rows(torch.float32)
        columns = torch.stack([weights, quality], dim=1)
        embeddings = embeddings[mine].requires_grad_()
        loss = head(embeddings, labels[mine], columns[mine])
        loss.backward()
        assert embeddings.grad is not None
        found.append((loss.detach(), embeddings.grad))
    return found


def test_every_rank_sees_the_columns_of_all(tmp_path: Path):
    """The loss, and the ranks' gradients together, are those of one rank."""
    (alone,) = run_ranks(on_ranks, world_size=1, folder=tmp_path)
    for (_, gradient), weights in zip(alone, CASES):
        assert gradient.any(1).tolist() == (weights > 0).tolist()
    for ranks in (2, 3):
        by_rank = run_ranks(on_ranks, world_size=ranks, folder=tmp_path)
        for case, (loss, gradient) in enumerate(alone):
            for found in by_rank:
                torch.testing.assert_close(found[case][0], loss)
            together = torch.cat([found[case][1] for found in by_rank])
            torch.testing.assert_close(together, gradient)


def test_a_margin_reads_the_column_that_it_names():
    def loss(quality: float) -> float:
        head = PartialFC(CLASSES, DIM, Careful(), columns=("quality",))
        embeddings, labels = rows(torch.float32)
        return float(head(embeddings, labels, torch.full((BATCH, 1), quality)))

    plain = PartialFC(CLASSES, DIM, CosFace(margin=0.4))
    assert loss(0.0) < loss(0.5) < loss(1.0) == loss(torch.nan)
    assert loss(1.0) == pytest.approx(float(plain(*rows(torch.float32))))


def test_a_step_with_columns_is_graph_safe():
    head = PartialFC(CLASSES, DIM, Careful(), columns=("weight", "quality"), sample_rate=0.3)
    embeddings, labels = rows(torch.float32)
    embeddings.requires_grad_()
    with GraphSafety():
        head(embeddings, labels, torch.ones(BATCH, 2)).backward()
        head.step(torch.tensor(0.1))


def test_what_does_not_fit_is_refused():
    with pytest.raises(
        UserError, match=r"columns=\(\), expected quality among them, which Careful"
    ):
        PartialFC(CLASSES, DIM, Careful())
    with pytest.raises(UserError, match="each name once"):
        PartialFC(CLASSES, DIM, ArcFace(), columns=("weight", "weight"))
    with pytest.raises(UserError, match="no weight with expectation_margin"):
        PartialFC(CLASSES, DIM, ArcFace(), columns=("weight",), expectation_margin=0.1)
    head, (embeddings, labels) = PartialFC(CLASSES, DIM, ArcFace(), columns=("weight",)), rows()
    with pytest.raises(ValueError, match="expected values of \\['weight'\\]"):
        head(embeddings, labels)
    with pytest.raises(
        ValueError, match=r"shape \(6,\).* expected torch.float32 of shape \(6, 1\)"
    ):
        head(embeddings, labels, WEIGHTS)
    with pytest.raises(ValueError, match="expected values of \\[\\]"):
        PartialFC(CLASSES, DIM, ArcFace())(embeddings, labels, WEIGHTS.unsqueeze(1))
