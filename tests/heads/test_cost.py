"""A head's predicted cost is what its step counts when it is acted out."""

from __future__ import annotations

import pytest
import torch

from benchmarks.head_counts import DIM, RANKS, act_out
from heads import statistics
from heads.centers import shard_of
from heads.cost import HeadCost, predict_cost
from heads.sampling import sampling_at


def predicted(classes: int, rate: float, batch: int, *, triton: bool, **kept) -> HeadCost:
    return predict_cost(
        shard_of(classes, rank=0, world_size=RANKS),
        DIM,
        sampling_at(rate),
        global_batch=batch,
        world_size=RANKS,
        triton=triton,
        **kept,
    )


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize("sizes", [(100_000, 1.0), (2_000_000, 0.1)])
@pytest.mark.parametrize("batch", [128, 1024, 4096])
def test_what_is_predicted_is_what_a_step_counts(backend, sizes, batch):
    counts = act_out(*sizes, batch, backend=backend).counts
    found = predicted(*sizes, batch, triton=backend == "triton")
    assert found.bytes == pytest.approx(counts.moved, rel=0.15)
    assert found.gathered + found.scattered == counts.sent
    assert found.launches == pytest.approx(counts.operations + counts.launches, rel=0.5)


@pytest.mark.slow
def test_statistics_of_many_bytes_are_counted_as_they_are_exchanged(monkeypatch):
    monkeypatch.setattr(statistics, "GATHERED_BYTES", 0)
    counts = act_out(100_000, 1.0, 128, backend="torch").counts
    found = predicted(100_000, 1.0, 128, triton=False)
    reduced = 128 * 3 * 4  # given once to the all_reduces, counted twice
    assert counts.collectives == 4
    assert found.gathered + found.scattered == counts.sent + reduced


def test_at_many_ranks_the_statistics_do_not_grow_with_the_ranks():
    """A rank of 1,024 gets 24 bytes of them for a row; all ranks' would be 8,192."""
    ranks, images = 1024, 128
    found = predict_cost(
        *(shard_of(1_000_000, rank=0, world_size=ranks), DIM, sampling_at(1.0)),
        global_batch=ranks * images,
        world_size=ranks,
        triton=True,
    )
    assert found.gathered == images * (DIM * 4 + 8)
    assert found.scattered == ranks * images * (DIM * 4 + 24)


def test_narrow_centers_move_fewer_bytes_by_what_they_are_narrower():
    """Read twice and written once; momentum is read and written."""
    wide, narrow, none = (
        predicted(100_000, 1.0, 1024, triton=True, **kept).bytes
        for kept in (
            {},
            {"centers_dtype": torch.bfloat16, "momentum_dtype": torch.bfloat16},
            {"momentum": False},
        )
    )
    values = 100_000 // RANKS * DIM
    assert wide - narrow == values * (3 + 2) * 2
    assert wide - none == values * 2 * 4


def test_a_product_is_counted_for_the_cosines_twice_and_for_two_gradients():
    found = predicted(80_000, 1.0, 128, triton=True)
    assert found.flops == 4 * 2 * 10_000 * DIM * 128
