"""What class_kernels.py must compute, against dense float64 references a few lines long.

tests/heads/passes/kernels/test_kernels.py runs this file in a process of its own: under Triton's
interpreter on the CPU, which has to be chosen before Triton is first imported, and compiled where
there is a GPU.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import triton.language as tl
from torch import Tensor
from torch.nn.functional import normalize

from heads import AdaFace, ArcFace, CosFace, CurricularFace, GroupClasses, PartialFC, UniFace
from heads.extra_terms import Classifiability
from heads.negatives import Negatives, Threshold
from heads.passes.kernels import class_kernels, kernel_launch, row_kernels
from heads.rows.stored import Stored
from tests.graph_safety import GraphSafety

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
SCALE, GAIN = 64.0, 4.0
TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1.5e-2}

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, for inf and NaN

if INTERPRETED:
    from triton.runtime import interpreter

    _create_dot = interpreter.InterpreterBuilder.create_dot
    _convert_float = interpreter._convert_float

    def _dot_of_floats(builder: Any, left: Any, right: Any, *rest: Any) -> Any:
        """The interpreter keeps bfloat16 as integers and would multiply those."""
        if left.dtype.scalar == tl.bfloat16:
            left, right = (builder.cast_impl(operand, tl.float32) for operand in (left, right))
        return _create_dot(builder, left, right, *rest)

    def _round_to_nearest(data: Any, source: Any, target: Any, mode: Any) -> Any:
        """The interpreter cuts the bits of bfloat16 off, where a GPU rounds."""
        if source == tl.float32 and target == tl.bfloat16:
            return torch.from_numpy(data).bfloat16().view(torch.int16).numpy().view("uint16")
        return _convert_float(data, source, target, mode)

    interpreter.InterpreterBuilder.create_dot = _dot_of_floats
    interpreter._convert_float = _round_to_nearest


@dataclass(frozen=True)
class Case:
    """One step. size: global batch, dimensions, rows of the centers. hook: of the negatives."""

    size: tuple[int, int, int]
    sampled: int | None = None
    subcenters: int = 1
    grouped: bool = False
    hook: str = ""
    own: bool = True
    dtype: torch.dtype = torch.float16


CASES = [
    Case((1, 1, 1)),
    Case((5, 7, 9)),
    Case((37, 40, 75), sampled=53, grouped=True),
    Case((19, 33, 50), subcenters=2, hook="hard", dtype=torch.bfloat16),
    Case((17, 24, 40), sampled=21, subcenters=3, grouped=True, hook="hard filter"),
    Case((20, 16, 34), hook="filter", own=False, dtype=torch.bfloat16),
    Case((21, 4, 40), subcenters=2, grouped=True, hook="threshold filter"),
]


class Step:
    """The inputs of a case, and what the passes over them must give, in float64."""

    def __init__(self, case: Case, *, seed: int = 0, centers: Tensor | None = None) -> None:
        generator = torch.Generator().manual_seed(seed)
        batch, dim, total = case.size
        count, parts = case.sampled or total, case.subcenters
        self.case = case
        self.embeddings = normalize(_randn(batch, dim, generator=generator)).to(case.dtype)
        self.centers = _randn(total, parts * dim, generator=generator) * 0.01
        if centers is not None:
            self.centers = centers
        self.rows = None
        if case.sampled is not None:
            self.rows = torch.randperm(total, generator=generator)[:count].to(DEVICE)
        self.positions = torch.full((batch,), -1, device=DEVICE)
        if case.own:
            self.positions = torch.randint(-1, count, (batch,), generator=generator).to(DEVICE)
        self.groups = None
        if case.grouped:
            columns = torch.randint(-2, 3, (count,), generator=generator, dtype=torch.int32)
            rows = torch.randint(0, 3, (batch,), generator=generator, dtype=torch.int32)
            self.groups = (columns.to(DEVICE), rows.to(DEVICE))
        self.target = -torch.rand(batch, generator=generator).to(DEVICE)
        place = torch.randint(0, parts, (batch,), generator=generator)
        self.target_subcenter = place.to(DEVICE)

        self.unit, self.cosines = self.dense()
        best = self.cosines.amax(2)
        self.negatives = Negatives(
            filter_above=float(_gap(best.flatten())) if "filter" in case.hook else math.inf,
            hard_above=_gap(best).float() if "hard" in case.hook else None,
            easing=torch.tensor(0.3, device=DEVICE) if "hard" in case.hook else None,
            # In the middle of the logits, which lie on both sides of what the kernels tell apart.
            threshold=Threshold(torch.tensor(2.0, device=DEVICE), SCALE, 1.0)
            if "threshold" in case.hook
            else None,
        )
        # The largest coefficients then weigh as much as the targets.
        self.log_partition = (SCALE * self.bend()[0].amax(1) + 0.5).float()

    def dense(self) -> tuple[Tensor, Tensor]:
        """Unit centers as the kernels read them, (S, K, D), and the cosines, (G, S, K)."""
        centers = self.centers if self.rows is None else self.centers[self.rows]
        centers = centers.view(centers.shape[0], self.case.subcenters, -1)
        unit = normalize(centers.double(), dim=2).to(self.case.dtype).double()
        return unit, torch.einsum("gd,skd->gsk", self.embeddings.double(), unit)

    @property
    def common(self) -> dict[str, Any]:
        return {
            "positions": self.positions,
            "groups": self.groups,
            "negatives": self.negatives,
            "scale": SCALE,
            "subcenters": self.case.subcenters,
        }

    def unit_rows(self) -> Tensor:
        count, parts, dim = self.unit.shape
        if self.rows is not None:
            count = len(self.rows)
        # Whatever the memory held must not matter.
        unit = self.embeddings.new_full((count * parts, dim), math.nan)
        row_kernels.unit_rows(unit, Stored(self.centers), self.rows)
        return unit

    def first_pass(self) -> Tensor:
        return class_kernels.negative_logsumexp(self.embeddings, self.unit_rows(), **self.common)

    def second_pass(self, into: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The product, then what `gradients` returns."""
        unit = self.unit_rows()
        rest = class_kernels.gradients(
            self.embeddings,
            unit,
            **self.common,
            log_partition=self.log_partition,
            target=self.target,
            target_subcenter=self.target_subcenter,
            gain=GAIN,
            into=into,
        )
        self.negatives_sum = rest[2]
        return unit if into is None else into, *rest[:2]

    def masks(self) -> tuple[Tensor, Tensor]:
        """(G, S) each: the classes a row sees beside its own, and its own."""
        batch, count = self.cosines.shape[:2]
        own = self.positions.unsqueeze(1) == torch.arange(count, device=DEVICE)
        seen = torch.ones(batch, count, dtype=torch.bool, device=DEVICE)
        if self.groups is not None:
            columns, rows = self.groups
            seen = (columns == -1) | (columns == rows.unsqueeze(1))
        return seen & ~own, own

    def bend(self) -> tuple[Tensor, Tensor]:
        cosine = self.cosines.amax(2)
        bent, slope = cosine, torch.ones_like(cosine)
        if self.negatives.hard_above is not None:
            hard = cosine > self.negatives.hard_above.unsqueeze(1)
            bent = torch.where(hard, cosine * (self.negatives.easing + cosine), cosine)
            slope = torch.where(hard, self.negatives.easing + 2 * cosine, 1.0)
        if self.negatives.threshold is not None:
            logit = SCALE * cosine - 2.0
            soft = torch.log1p(logit.exp())
            bent, slope = soft.log() / SCALE, torch.sigmoid(logit) / soft
        return torch.where(cosine > self.negatives.filter_above, -math.inf, bent), slope

    def expected_logsumexp(self) -> Tensor:
        seen, _ = self.masks()
        return torch.where(seen, SCALE * self.bend()[0], -math.inf).logsumexp(1)

    def expected_coefficients(self) -> Tensor:
        """(G, S, K)."""
        seen, own = self.masks()
        bent, slope = self.bend()
        value = GAIN * torch.exp(SCALE * bent - self.log_partition.unsqueeze(1)) * slope
        places = torch.arange(self.case.subcenters, device=DEVICE)
        largest = places == self.cosines.argmax(2, keepdim=True)
        coefficients = torch.where(seen.unsqueeze(2) & largest, value.unsqueeze(2), 0.0)
        mine = own.unsqueeze(2) & (places == self.target_subcenter.view(-1, 1, 1))
        return torch.where(mine, GAIN * self.target.double().view(-1, 1, 1), coefficients)

    def expected_gradients(self) -> tuple[Tensor, Tensor, Tensor]:
        coefficients = self.expected_coefficients()
        return (
            torch.einsum("gsk,gd->skd", coefficients, self.embeddings.double()).flatten(0, 1),
            torch.einsum("gsk,skd->gd", coefficients, self.unit),
            (coefficients * self.cosines).sum(0).flatten(),
        )


def _randn(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=generator).to(DEVICE)


def _gap(values: Tensor) -> Tensor:
    """A threshold per row amid the widest gap of its larger values: rounding crosses none."""
    ordered = values.sort(-1).values
    ordered = ordered[..., ordered.shape[-1] // 2 :]
    widest = ordered.diff(dim=-1).argmax(-1, keepdim=True)
    return (ordered.gather(-1, widest) + ordered.gather(-1, widest + 1)).squeeze(-1) / 2


def _assert_close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """To within the rounding of what was summed: relative to the tensor's largest value."""
    limit = TOLERANCE[dtype] * float(expected.abs().amax())
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=limit)


def test_available_where_the_cases_run() -> None:
    assert kernel_launch.available(DEVICE, 512, torch.float16) is None
    obstacle = kernel_launch.available(DEVICE, 512, torch.bfloat16)
    assert "interpreter" in obstacle if INTERPRETED else obstacle is None


@pytest.mark.parametrize("case", CASES, ids=str)
def test_both_passes(case: Case) -> None:
    step = Step(case)
    with GraphSafety():
        found = step.first_pass()
        gradients = step.second_pass()
    # Logits are exact to float32's sums; only a rounding of the unit centers may differ.
    torch.testing.assert_close(
        found.double(), step.expected_logsumexp(), rtol=0, atol=10 * TOLERANCE[case.dtype]
    )
    for found, expected in zip(gradients, step.expected_gradients()):
        _assert_close(found, expected, case.dtype)
    if step.negatives.threshold is not None:
        own = step.masks()[1].unsqueeze(2)
        expected = torch.where(own, 0.0, step.expected_coefficients()).sum()
        _assert_close(step.negatives_sum, expected, case.dtype)
    for first, second in zip(gradients, step.second_pass()):
        assert torch.equal(first, second), "two runs differ"


@pytest.mark.parametrize("subcenters", [1, 2])
def test_chunks_of_classes(monkeypatch: pytest.MonkeyPatch, subcenters: int) -> None:
    chunk = 32 if INTERPRETED else 128
    monkeypatch.setattr(class_kernels, "_chunk_size", lambda *_: chunk)
    step = Step(Case((18, 20, 3 * chunk + 5), sampled=2 * chunk + 7, subcenters=subcenters))
    for found, expected in zip(step.second_pass(), step.expected_gradients()):
        _assert_close(found, expected, torch.float16)


def test_accumulates_over_micro_batches() -> None:
    """Each with the gradient along the centers of its own share."""
    first = Step(Case((9, 12, 20)), seed=1)
    product = torch.zeros(20, 12, device=DEVICE)
    expected = torch.zeros(20, 12, dtype=torch.float64, device=DEVICE)
    for step in (first, Step(Case((9, 12, 20)), seed=2, centers=first.centers)):
        found = step.second_pass(product)
        share, *rest = step.expected_gradients()
        expected += share
        for one, other in zip(found, (expected, *rest)):
            _assert_close(one, other, torch.float16)


def test_no_classes() -> None:
    step = Step(Case((3, 8, 4), own=False))
    step.rows = torch.empty(0, dtype=torch.int64, device=DEVICE)
    assert step.first_pass().tolist() == [-math.inf] * 3
    product, grad, along = step.second_pass()
    assert torch.equal(grad, torch.zeros(3, 8, device=DEVICE))
    assert product.shape == (0, 8)
    assert along.shape == (0,)


def test_nothing_to_see_but_the_own_class() -> None:
    step = Step(Case((6, 8, 20)))
    nobody = torch.full((20,), -2, dtype=torch.int32, device=DEVICE)
    step.groups = (nobody, torch.full((6,), -2, dtype=torch.int32, device=DEVICE))
    assert step.first_pass().tolist() == [-math.inf] * 6
    expected = torch.zeros(21, 8, device=DEVICE)
    pulls = GAIN * step.target.unsqueeze(1) * step.embeddings.float()
    expected.index_add_(0, step.positions.remainder(21), pulls)
    torch.testing.assert_close(step.second_pass()[0].float(), expected[:20], rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("scale", [64.0, 90.0])
def test_cosines_from_one_end_to_the_other(scale: float) -> None:
    """Rows that see nothing but their opposite or their like; 90 is too much without a maximum."""
    step = Step(Case((4, 16, 1), own=False))
    for sign in (-1, 1):
        step.embeddings[:] = sign * normalize(step.centers).half()
        step.unit, step.cosines = step.dense()
        found = class_kernels.negative_logsumexp(
            step.embeddings, step.unit_rows(), **step.common | {"scale": scale}
        )
        assert abs(float(found[0])) > 0.99 * scale
        expected = scale * step.cosines[:, 0, 0]
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)


def test_nan_in_an_embedding_reaches_its_row_and_every_class() -> None:
    step = Step(Case((20, 12, 40), subcenters=2, hook="filter"))
    step.embeddings[7, 3] = math.nan
    poisoned = torch.arange(20, device=DEVICE) == 7
    assert torch.equal(step.first_pass().isnan(), poisoned)
    product, grad, along = step.second_pass()
    assert torch.equal(grad.isnan().any(1), poisoned)
    # A NaN among a row's coefficients, and be it times 0, is one in the class's product.
    assert along.view(40, 2).isnan().any(1).all()
    assert product.isnan().any()


@pytest.mark.parametrize("subcenter", [0, 1])
def test_nan_in_a_center_reaches_every_row_that_sees_it(subcenter: int) -> None:
    step = Step(Case((20, 12, 40), subcenters=2, hook="hard"))
    step.centers[33, 12 * subcenter + 5] = math.nan
    assert torch.equal(step.first_pass().isnan(), step.positions != 33)
    _, grad, along = step.second_pass()
    assert grad.isnan().all()
    assert torch.equal(along.isnan().nonzero().squeeze(1).cpu(), torch.tensor([66 + subcenter]))


def test_extreme_logits_stay_finite_and_overflow_shows() -> None:
    step = Step(Case((8, 16, 30), own=False))
    step.centers[:8] = step.embeddings.float()
    step.unit, step.cosines = step.dense()
    torch.testing.assert_close(
        step.first_pass().double(), step.expected_logsumexp(), rtol=0, atol=0.02
    )
    step.log_partition.fill_(1e4)
    assert all(torch.count_nonzero(part) == 0 for part in step.second_pass())
    step.log_partition.fill_(-100.0)
    assert not step.second_pass()[2][:8].isfinite().any()


def test_a_product_that_overflows_where_it_is_kept_shows() -> None:
    """No coefficient does, but their sum: 20 rows of one class, of which float16 holds 10."""
    step = Step(Case((20, 16, 3)))
    step.embeddings[:] = step.embeddings[:1].clone()
    step.positions.fill_(1)
    step.target.fill_(65504 / GAIN / 10)
    finite = step.second_pass()[2].isfinite()
    assert finite.tolist() == [True, False, True]


def test_equal_subcenters_give_the_first_one_all() -> None:
    step = Step(Case((6, 8, 10), subcenters=3, own=False))
    step.centers[:, 16:] = step.centers[:, 8:16]
    product = step.second_pass()[0].view(10, 3, 8)
    assert torch.count_nonzero(product[:, 2]) == 0
    assert torch.count_nonzero(product[:, 1]) > 0


HEADS: list[tuple[int, dict[str, Any]]] = [
    (1, {"margin": ArcFace(), "sample_rate": 0.3}),
    (2, {"margin": ArcFace(), "sample_rate": 0.3}),
    (2, {"margin": ArcFace(), "sample_rate": 0.0}),
    # One forward a step: two roundings of a cosine may fall on both sides of a hook's threshold.
    (1, {"margin": CurricularFace()}),
    (
        2,
        {
            "margin": AdaFace(),
            "group_sampling": GroupClasses(groups=30, random_groups=2, scope="sample"),
        },
    ),
    (2, {"margin": CosFace(), "subcenters": 2, "sample_rate": 0.3}),
    (2, {"margin": UniFace(), "sample_rate": 0.3}),
    (2, {"margin": ArcFace(), "extra_terms": (Classifiability(),), "sample_rate": 0.3}),
]


@pytest.mark.parametrize(("forwards", "options"), HEADS, ids=str)
def test_a_head_trains_as_with_pytorch(forwards: int, options: dict[str, Any]) -> None:
    """Three steps of both backends: losses, embedding gradients, where the centers went."""
    generator = torch.Generator().manual_seed(0)
    found: dict[str, list[Tensor]] = {}
    batches = [
        (torch.randn(forwards * 12, 24, generator=generator), torch.arange(forwards * 12) * 7 % 90)
        for _ in range(3)
    ]
    for backend in ("torch", "triton"):
        head = PartialFC(
            90, 24, compute_dtype=torch.float16, backend=backend, device=DEVICE, **options
        )
        start, results = head.centers.clone(), []
        for embeddings, labels in batches:
            leaf = embeddings.to(DEVICE).requires_grad_()
            labels = labels.to(DEVICE)
            if forwards > 1:
                head.begin_step(labels.view(forwards, -1))
            for rows, ids in zip(leaf.chunk(forwards), labels.chunk(forwards)):
                loss = head(rows, ids)
                loss.backward()
                results.append(loss.detach())
            head.step(torch.tensor(0.01, device=DEVICE))
            results.append(leaf.grad)
        assert head.backend.name == backend
        moved = head.centers - start
        assert moved.any()
        found[backend] = [*results, moved, head.velocity]
        if len(head.learned):
            found[backend].append(head.learned_velocity)
    for torchs, tritons in zip(found["torch"], found["triton"]):
        assert (tritons - torchs).abs().max() <= 0.01 * torchs.abs().max()
