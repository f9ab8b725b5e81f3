"""Rounding to bfloat16 and float8: exact where it can be, unbiased where not, anywhere alike."""

from __future__ import annotations

import math

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from heads import counter
from heads.passes.workspace import Workspace
from heads.rows.placement import Placement
from heads.rows.rounding import FLOAT8, column_keys
from heads.rows.stored import NARROW, Noise, Stored, read_rows, write_rows, zero_rows

CPU = torch.device("cpu")
ON_CPU = Placement("device", None, CPU)
dtypes = pytest.mark.parametrize("dtype", NARROW, ids=["bfloat16", "float8"])

# Any scale of rows, subnormal numbers and zeros among them.
rows_of_any_size = arrays.arrays(
    np.float32,
    (3, 8),
    elements=st.floats(-1, 1, width=32),
).flatmap(
    lambda rows: st.lists(st.integers(-126, 119), min_size=3, max_size=3).map(
        lambda powers: torch.from_numpy(rows * np.exp2(np.float32(powers))[:, None])
    )
)


def keys(count: int, *, step: int = 0) -> Tensor:
    noise = Noise(counter.step_key(5, torch.tensor(step), 9), torch.arange(count))
    return noise.row_keys()[0]


def store(rows: Tensor, dtype: torch.dtype, *, step: int | None = 0, subcenters: int = 2) -> Stored:
    kept = zero_rows(*rows.shape, subcenters=subcenters, dtype=dtype, placement=ON_CPU)
    key = None if step is None else keys(len(rows), step=step)
    write_rows(kept, slice(None), rows, key, workspace=Workspace(CPU))
    return kept


def load(kept: Stored, dtype: torch.dtype = torch.float32) -> Tensor:
    return read_rows(kept, slice(None), dtype, workspace=Workspace(CPU), name="rows").clone()


def same_bits(one: Stored, other: Stored) -> bool:
    scales = (torch.zeros(()) if kept.scales is None else kept.scales for kept in (one, other))
    return torch.equal(one.values.view(torch.int8), other.values.view(torch.int8)) and torch.equal(
        *scales
    )


def unit(rows: Tensor, kept: Stored) -> Tensor:
    """The distance between the neighbors of each value."""
    if kept.scales is None:
        return torch.exp2(rows.abs().clamp_min(2.0**-126).log2().floor()) * 2.0**-7
    scales = kept.scales.repeat_interleave(rows.shape[1] // kept.scales.shape[1], 1).double()
    size = (rows / scales).abs().clamp_min(2.0**-6)
    return torch.exp2(size.log2().floor()) * 2.0**-3 * scales


@dtypes
@settings(deadline=None)
@given(rows=rows_of_any_size, step=st.integers(0, 1 << 40))
def test_goes_to_a_neighbor_and_never_out_of_range(dtype, rows, step):
    kept = store(rows, dtype, step=step)
    found = load(kept).double()
    assert found.isfinite().all()
    assert ((found - rows).abs() <= unit(rows.double(), kept)).all()
    nearest = load(store(rows, dtype, step=None)).double()
    assert ((nearest - rows).abs() <= unit(rows.double(), kept) / 2).all()


@dtypes
@settings(deadline=None)
@given(rows=rows_of_any_size, step=st.integers(0, 1 << 40))
def test_what_is_representable_stays_as_it_is(dtype, rows, step):
    kept = store(rows, dtype, step=step)
    before = Stored(*(part if part is None else part.clone() for part in kept))
    write_rows(kept, torch.arange(3), load(kept), keys(3, step=step + 1), workspace=Workspace(CPU))
    assert same_bits(kept, before)


@dtypes
@settings(deadline=None)
@given(rows=rows_of_any_size, step=st.integers(0, 1 << 40))
def test_order_is_kept_under_the_same_noise(dtype, rows, step):
    """A larger value never gets a smaller neighbor than another with its noise."""
    # Both in a row of the same largest value, so that a float8 row has the same scale.
    rows[:, 0] = rows[:, 4] = rows.abs().amax(1)
    smaller = rows.clone()
    smaller[:, 1:4] *= 0.7
    one, other = (load(store(values, dtype, step=step)).abs() for values in (rows, smaller))
    assert (other <= one).all()


@dtypes
def test_unbiased_over_draws(dtype):
    """Over many draws a value comes out as itself, the subnormal numbers of float8 among them."""
    torch.manual_seed(0)
    rows = torch.randn(4, 64) * torch.tensor([1.0, 1e-3, 1e20, 1e-38]).unsqueeze(1)
    rows[0, :16] *= 2.0**-18
    draws = 2000
    mean, square = torch.zeros(2, 4, 64, dtype=torch.float64)
    for step in range(draws):
        off = load(store(rows, dtype, step=step, subcenters=1)).double() - rows
        mean += off / draws
        square += off * off / draws
    error = (square / draws).sqrt()
    moved = error > 0
    assert moved.float().mean() > 0.9
    score = mean[moved] / error[moved]
    assert score.abs().max() < 5
    # Each has a variance of 1, and so has their sum, scaled, where their noises are independent.
    assert abs(float(score.sum())) / math.sqrt(len(score)) < 4
    assert 0.7 < float(score.std()) < 1.3


def test_noise_of_different_columns_and_rows_is_uncorrelated():
    """The products' upper bits, as the rounding takes them: no two columns go up together."""
    product = keys(4096).unsqueeze(1) * column_keys(64, CPU)
    noise = ((product >> 16) & 0xFFFF).double() / 2**16 - 0.5
    assert noise.mean(0).abs().max() < 5 * math.sqrt(1 / 12 / 4096)
    correlation = torch.corrcoef(noise.T).fill_diagonal_(0)
    assert correlation.abs().max() < 6 / math.sqrt(4096)
    assert torch.corrcoef(noise[:64]).fill_diagonal_(0).abs().max() < 6 / math.sqrt(64)


def test_float8_is_read_as_torch_reads_it():
    codes = torch.arange(256, dtype=torch.uint8)
    codes = codes[(codes & 127) != 127].unsqueeze(0)  # without its NaN
    for scale in (2.0**-126, 0.5, 2.0**100):
        kept = Stored(codes.view(FLOAT8), torch.tensor([[scale, scale]]))
        for dtype in (torch.float32, torch.float64):
            assert torch.equal(load(kept, dtype), codes.view(FLOAT8).to(dtype) * scale)


@pytest.mark.parametrize("dtype", NARROW)
def test_a_rank_without_a_class_has_no_rows_to_round_or_read(dtype):
    """As where there are fewer classes than ranks."""
    kept = store(torch.zeros(0, 6), dtype)
    assert load(kept).shape == (0, 6)


def test_the_largest_value_of_a_float8_row_fits_and_uses_the_range():
    rows = torch.tensor([[448.0, 1.0], [448.1, 1.0], [449.0, 0.0], [2.0**-140, 0.0], [3e38, 1.0]])
    kept = store(rows, FLOAT8, subcenters=1)
    assert kept.scales.flatten().tolist() == [1.0, 2.0, 2.0, 2.0**-126, 2.0**120]
    zeros = store(torch.zeros(2, 4), FLOAT8)
    assert torch.equal(load(zeros), torch.zeros(2, 4))
    assert torch.equal(zeros.scales, torch.ones(2, 2)), "they keep the scale that they had"


@dtypes
def test_what_is_not_finite_stays_visible(dtype):
    rows = torch.ones(4, 4)
    rows[0, 1], rows[1, 2], rows[2, 3] = math.nan, math.inf, -math.inf
    found = load(store(rows, dtype, subcenters=1))
    assert found.isfinite().all(1).tolist() == [False, False, False, True]


@dtypes
def test_rows_by_number_are_the_rows_in_their_place(dtype):
    torch.manual_seed(1)
    new, places = torch.randn(5, 6), torch.tensor([7, 0, 3, 9, 4])
    kept = store(torch.randn(10, 6), dtype)
    before = load(kept)
    write_rows(kept, places, new, keys(5), workspace=Workspace(CPU))
    assert torch.equal(load(kept)[places], load(store(new, dtype)))
    rest = [1, 2, 5, 6, 8]
    assert torch.equal(load(kept)[rest], before[rest])
    found = read_rows(kept, places, torch.float32, workspace=Workspace(CPU), name="rows")
    assert torch.equal(found, load(kept)[places])


def test_noise_follows_seed_step_class_and_matrix():
    def drawn(seed: int = 1, step: int = 2, first: int = 0, matrix: int = 0) -> Tensor:
        key = counter.step_key(seed, torch.tensor(step), 4)
        return Noise(key, torch.arange(first, first + 50)).row_keys()[matrix]

    for other in (drawn(seed=2), drawn(step=3), drawn(matrix=1), drawn(first=50)):
        assert (drawn() != other).all()
    assert torch.equal(drawn(first=10)[:40], drawn()[10:]), "not the place of a row, but its class"
