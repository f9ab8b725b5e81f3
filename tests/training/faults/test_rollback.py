"""Non-finite steps in a row: when to go back, to where, and what is said when that is no use."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.collection import Collection
from pipeline.dali_loader import Batch
from pipeline.records.index import open_index
from tests.ranks import run_ranks
from tests.training import tiny
from training.distributed import World
from training.faults.rollback import BadStep, Rollback, diagnose, gather_bad_steps
from training.step.train_step import StepResult

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("limit", "skipped", "scale", "due"),
    [
        (50, 49, 1.0, False),
        (50, 50, 1.0, True),
        (50, 60, 0.25, True),
        (0, 10_000, 1.0, False),  # off
        (5, 16, 2.0, False),  # a scaler that still looks for its scale, from 65536
    ],
)
def test_when_to_go_back(limit, skipped, scale, due):
    assert Rollback(limit).due(skipped_in_a_row=skipped, loss_scale=scale) is due


def test_only_a_step_after_which_others_counted_is_gone_back_to():
    rollback = Rollback(50)
    assert rollback.target([10, 20, 30], first_skipped=30) == 20
    assert rollback.target([10, 20, 30], first_skipped=31) == 30
    assert rollback.target([30], first_skipped=30) is None
    assert rollback.target([], first_skipped=5) is None


def test_the_rate_is_halved_twice_and_then_it_is_enough():
    rollback, factors = Rollback(50), []
    while rollback.target([10], first_skipped=11) is not None:
        rollback.times += 1
        factors.append(rollback.factor)
    assert factors == [0.5, 0.25]


def bad(rank: int, **seen: float) -> BadStep:
    values = {"loss": NAN, "gradient_norm": NAN, "embedding_norm": 20.0, "loss_scale": 1.0}
    return BadStep(rank, **(values | seen), records=(f"record of rank {rank}",))


@pytest.mark.parametrize(
    ("steps", "finding", "named"),
    [
        (
            [bad(0), bad(1, embedding_norm=INF)],
            "embeddings are not finite on rank 1: the backbone's forward",
            ["record of rank 1"],
        ),
        (
            [bad(0), bad(1)],
            "embeddings are finite, the head's loss is not",
            ["record of rank 0", "record of rank 1"],
        ),
        (
            [bad(0, loss=9.5, gradient_norm=INF), bad(1, loss=9.5)],
            "the loss is finite, the gradient is not",
            ["record of rank 0", "record of rank 1"],
        ),
    ],
)
def test_the_diagnosis_says_where_it_begins_and_names_those_records(steps, finding, named):
    text = diagnose(steps, step=400, skipped_in_a_row=50, times=2)
    assert "step 400: 50 steps in a row were not finite" in text
    assert "after going back 2 times" in text
    assert finding in text
    assert "rank 1: loss" in text
    for rank in range(2):
        record = f"rank {rank} read record of rank {rank}"
        assert (record in text) == (f"record of rank {rank}" in named)


def look(world: World, data: str) -> list[BadStep]:
    values = [torch.tensor(value) for value in (NAN, 0.0, INF, 10.0 + world.rank)]
    result = StepResult(*values, skipped=torch.tensor(True), loss_scale=torch.tensor(0.5))
    mine = np.arange(20) + 20 * world.rank
    batch = Batch(torch.empty(0), torch.empty(0), mine)
    return gather_bad_steps(result, batch, Collection.of(open_index(data)))


def test_every_rank_learns_what_all_have_seen(tmp_path):
    data = tiny.write_set(tmp_path / "data") / "train.rec"
    results = run_ranks(look, str(data), world_size=2, folder=tmp_path)
    assert str(results[0]) == str(results[1])
    assert [seen.rank for seen in results[0]] == [0, 1]
    assert [seen.embedding_norm for seen in results[0]] == [10.0, 11.0]
    assert [len(seen.records) for seen in results[0]] == [8, 8], "the first few"
    assert "train.rec: the image of the record at offset" in results[1][1].records[0]
    assert not set(results[0][0].records) & set(results[0][1].records)
