"""What heads.passes.kernels.row_kernels must compute: rows read, and rows moved, as they are kept.

tests/heads/passes/kernels/test_kernels.py runs this file beside class_kernel_cases.py, which see.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from heads import counter
from heads.passes import row_update
from heads.passes.cosine_softmax import CenterGradient
from heads.passes.kernels import row_kernels, softmax
from heads.passes.workspace import Workspace
from heads.rows.stored import FLOAT8, Noise, Stored, read_rows, write_rows
from heads.sampling import Sample
from tests.graph_safety import GraphSafety
from tests.heads.passes.kernels.class_kernel_cases import DEVICE

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, for inf and NaN

COUNT, DIM = 30, 13
WORKSPACE = Workspace(DEVICE)


def _same_bits(found: Tensor, expected: Tensor) -> bool:
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[found.itemsize]
    return torch.equal(found.view(bits), expected.view(bits))


@pytest.mark.parametrize("subcenters", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_unit_rows(subcenters: int, dtype: torch.dtype) -> None:
    centers = torch.randn(70, subcenters * 11, device=DEVICE)
    centers[4, :11] = 0.0
    centers[6, 2] = math.nan
    rows = torch.arange(69, 1, -1, device=DEVICE)
    for chosen in (None, rows):
        read = (centers if chosen is None else centers[chosen]).view(-1, 11)
        unit = torch.empty_like(read, dtype=dtype)
        found = row_kernels.unit_rows(unit, Stored(centers), chosen)
        lengths = read.norm(dim=1)
        expected = torch.where(lengths == 0, 0.0, 1 / lengths)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=0, equal_nan=True)
        expected = (read * found.unsqueeze(1)).to(dtype)
        torch.testing.assert_close(unit, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, FLOAT8])
def test_narrow_rows_are_read_exactly(dtype: torch.dtype) -> None:
    """Of all magnitudes, subnormal ones and rows of zeros among them."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(COUNT, 2 * DIM, generator=generator)
    values *= 2.0 ** torch.randint(-12, 1, values.shape, generator=generator)
    values[::2] *= 1e-20
    values[4] = 0.0
    stored = _kept(values.to(DEVICE), 2, dtype)
    full = read_rows(stored, slice(0, COUNT), torch.float32, workspace=WORKSPACE, name="full")
    rows = torch.tensor([7, 4, 29, 0, 1], device=DEVICE)
    units = [torch.empty(10, DIM, dtype=torch.float16, device=DEVICE) for _ in range(2)]
    lengths = [
        row_kernels.unit_rows(unit, kept, rows) for unit, kept in zip(units, (stored, Stored(full)))
    ]
    assert _same_bits(*lengths)
    assert _same_bits(*units)


def _kept(values: Tensor, subcenters: int, dtype: torch.dtype) -> Stored:
    scales = torch.ones(len(values), subcenters, device=DEVICE) if dtype == FLOAT8 else None
    stored = Stored(torch.zeros(values.shape, dtype=dtype, device=DEVICE), scales)
    write_rows(stored, slice(0, len(values)), values, None, workspace=WORKSPACE)
    return stored


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("momentum", [None, torch.float32, torch.bfloat16, FLOAT8], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, FLOAT8], ids=str)
def test_rows_are_written_with_the_same_bits_as_by_pytorch(
    dtype: torch.dtype, momentum: torch.dtype | None, sampled: bool
) -> None:
    """Of numbers that float32 adds and multiplies exactly: what differs is how they are rounded."""
    generator = torch.Generator().manual_seed(1)

    def eighths(*shape: int) -> Tensor:
        return (torch.randint(-60, 61, shape, generator=generator) / 8).to(DEVICE)

    rows = torch.tensor([20, 3, 11, 8], device=DEVICE) if sampled else None
    count = 4 if sampled else COUNT
    ids = 1000 + (torch.arange(COUNT, device=DEVICE) if rows is None else rows)
    weights, speeds = (eighths(COUNT, 2 * DIM) for _ in range(2))
    weights[8] *= 2.0**-40  # a float8 row whose scale must change
    weights[3, :DIM] = 0.0
    gradient = CenterGradient(
        eighths(2 * count, DIM).half(), eighths(2 * count, 1), eighths(2 * count, 1)
    )
    gradient.product[:2], gradient.drift[:2] = 0.0, 0.0  # of a row that does not move
    speeds[20 if sampled else 0] = 0.0

    found: list[list[Tensor]] = []
    for update in (row_update.update_rows, softmax.update_rows):
        centers = _kept(weights, 2, dtype)
        velocity = None if momentum is None else _kept(speeds, 2, momentum)
        update(
            *(centers, velocity, Sample(rows, torch.zeros(1, dtype=torch.int64)), gradient),
            lr=torch.tensor(2.0**-7, device=DEVICE),
            momentum=0.0 if momentum is None else 0.5,
            weight_decay=0.0,
            apply=torch.tensor(True, device=DEVICE),
            noise=Noise(counter.step_key(5, torch.tensor(7, device=DEVICE), 4), ids),
            workspace=WORKSPACE,
        )
        matrices = (*centers, *(velocity or ()))
        found.append([matrix for matrix in matrices if matrix is not None])
    for torchs, tritons in zip(*found, strict=True):
        assert _same_bits(torchs, tritons)
    assert not _same_bits(found[1][0], _kept(weights, 2, dtype).values)


@pytest.mark.parametrize("momentum", [torch.bfloat16, FLOAT8])
def test_rows_without_a_number_are_marked_and_skipped_steps_change_nothing(
    momentum: torch.dtype,
) -> None:
    ones = torch.ones(2, 2 * DIM, device=DEVICE)
    centers, velocity = _kept(ones, 2, FLOAT8), _kept(ones, 2, momentum)
    before = [part.clone() for part in (*centers, velocity.values)]
    product = torch.zeros(4, DIM, device=DEVICE)
    product[1, 3], product[2, 0] = math.nan, math.inf
    gradient = CenterGradient(product, *product.new_ones(2, 4, 1))
    for applies in (False, True):
        softmax.update_rows(
            *(centers, velocity, Sample(None, torch.zeros(1, dtype=torch.int64)), gradient),
            lr=torch.tensor(1.0, device=DEVICE),
            momentum=0.5,
            weight_decay=0.0,
            apply=torch.tensor(applies, device=DEVICE),
            noise=Noise(torch.tensor(3, device=DEVICE), torch.arange(2, device=DEVICE)),
            workspace=WORKSPACE,
        )
        same = [_same_bits(*pair) for pair in zip((*centers, velocity.values), before)]
        assert same == [not applies] * 3
    assert centers.scales is not None
    assert centers.scales.isfinite().tolist() == [[True, False], [False, True]]


def test_no_rows() -> None:
    empty = torch.empty(0, DIM, device=DEVICE)
    none = torch.empty(0, dtype=torch.int64, device=DEVICE)
    assert row_kernels.unit_rows(empty.half(), Stored(torch.ones(3, DIM)), none).shape == (0,)
    centers = torch.ones(3, DIM, device=DEVICE)
    _update(centers, centers.clone(), rows=none, product=empty, pull=empty, drift=empty)
    assert (centers == 1).all()


def _update(centers: Tensor, velocity: Tensor, **changes: Any) -> None:
    with GraphSafety():
        row_kernels.update_rows(
            changes.pop("product"),
            Stored(centers),
            Stored(velocity),
            **{
                "rows": None,
                "lr": torch.tensor(0.1, device=DEVICE),
                "momentum": 0.9,
                "weight_decay": 5e-4,
                "apply": torch.tensor(True, device=DEVICE),
                "active": None,
                "noise": None,
                **changes,
            },
        )


@pytest.mark.parametrize("subcenters", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("sampled", [False, True])
def test_update_moves_the_rows_that_take_part(
    subcenters: int, dtype: torch.dtype, sampled: bool
) -> None:
    dim, rows = 13, torch.tensor([30, 2, 17, 8, 41], device=DEVICE) if sampled else None
    count = 5 if sampled else 50
    centers, velocity = (torch.randn(50, subcenters * dim, device=DEVICE) for _ in range(2))
    product = torch.randn(count * subcenters, dim, device=DEVICE).to(dtype)
    pull, drift = (torch.randn(count * subcenters, device=DEVICE) for _ in range(2))
    active = torch.arange(count, device=DEVICE) != 3
    before = centers.clone(), velocity.clone()
    product[3 * subcenters] = math.nan  # the class that is not active

    gradient: dict[str, Any] = {"product": product, "pull": pull, "drift": drift, "rows": rows}
    _update(centers, velocity, **gradient, active=active, apply=torch.tensor(False, device=DEVICE))
    assert _same_bits(centers, before[0])
    assert _same_bits(velocity, before[1])

    _update(centers, velocity, **gradient, active=active)
    chosen = torch.arange(50, device=DEVICE) if rows is None else rows
    moved = chosen[active]
    still = torch.ones(50, dtype=torch.bool, device=DEVICE).index_fill_(0, moved, False)
    for found, old in zip((centers, velocity), before):
        assert _same_bits(found[still], old[still])

    weight, speed = (part[moved].double().view(-1, dim) for part in before)
    taking = active.repeat_interleave(subcenters)
    pull, drift = pull[taking].unsqueeze(1), drift[taking].unsqueeze(1)
    speed = 0.9 * speed + pull * product[taking].double() + (drift + 5e-4) * weight
    expected = weight - 0.1 * speed
    for found, wanted in ((velocity, speed), (centers, expected)):
        found = found[moved].double().view(-1, dim)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
