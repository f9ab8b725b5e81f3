"""Margins: values and slopes against scalar arithmetic, state, draws, and what is refused."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace

import pytest
import torch

from heads.margins import (
    MARGINS,
    AdaFace,
    ArcFace,
    Combined,
    CosFace,
    CurricularFace,
    ElasticArcFace,
    ElasticCosFace,
    MagFace,
    Softmax,
    SphereFace,
    UniFace,
    create_margin,
)
from heads.negatives import Negatives
from tests.graph_safety import GraphSafety
from tests.heads.head_reference import first_step, scalar_negative, scalar_targets
from tests.heads.margin_cases import CASES, COSINES, apply, context_of, every_margin, rows


@pytest.mark.parametrize("gradient", ["exact", "straight_through"])
@pytest.mark.parametrize("factor", [0.5, 1.0])
@every_margin
def test_targets_match_scalar_arithmetic(margin, factor, gradient):
    margin = replace(margin, gradient=gradient)
    for dtype, relative in [(torch.float64, 1e-9), (torch.float32, 1e-4)]:
        cosine, norms = rows(dtype)
        context = context_of(margin, len(cosine), dtype)
        context = context._replace(factor=torch.tensor(factor, dtype=dtype))
        target = margin(cosine, norms, context)
        # The reference reads what was rounded to `dtype`, so that only the arithmetic differs.
        expected, state = scalar_targets(margin, cosine.tolist(), norms.tolist(), context)
        for name in ("cosine", "slope", "norm_slope", "penalty", "penalty_slope"):
            wanted = torch.tensor([getattr(row, name) for row in expected], dtype=torch.float64)
            found = getattr(target, name)
            if found is None:
                assert not wanted.any()
                continue
            assert found.dtype == dtype
            torch.testing.assert_close(found.double(), wanted, rtol=relative, atol=relative / 50)
        if target.state is None:
            assert margin.initial_state() == ()
        else:
            assert target.state.dtype == dtype
            torch.testing.assert_close(target.state.tolist(), state, rtol=relative, atol=0)


@every_margin
def test_the_context_may_have_another_dtype(margin):
    """The head keeps one factor and one state, whatever the precision of the cosines."""
    for dtype, other in [(torch.float32, torch.float64), (torch.float64, torch.float32)]:
        cosine, norms = rows(dtype)
        # Numbers that both hold, so that the result may not depend on which.
        exact = {"factor": torch.tensor(0.5), "state": context_of(margin, 1).state.float()}
        targets = [
            apply(margin, cosine, norms, **{name: value.to(held) for name, value in exact.items()})
            for held in (dtype, other)
        ]
        for mine, foreign in zip(*targets):
            assert mine is foreign or (foreign.dtype == dtype and torch.equal(mine, foreign))
        if margin.uses_target_for_negatives:
            context = context_of(margin, len(cosine), other)
            negatives = margin.negatives(cosine, context)
            assert negatives.hard_above.dtype == negatives.easing.dtype == dtype


@every_margin
def test_a_factor_of_zero_is_the_plain_softmax(margin):
    for dtype in (torch.float64, torch.float32):
        cosine = torch.cat([rows(dtype)[0], torch.tensor([-1.0, 1.0], dtype=dtype)])
        norms = torch.linspace(1, 150, len(cosine), dtype=dtype)
        target = apply(margin, cosine, norms, factor=torch.tensor(0.0, dtype=dtype))
        rounding = 2 * torch.finfo(dtype).eps
        torch.testing.assert_close(target.cosine, cosine, rtol=0, atol=rounding)
        torch.testing.assert_close(target.slope, torch.ones_like(cosine), rtol=0, atol=rounding)
        if target.norm_slope is not None:
            assert not target.norm_slope.any()


@every_margin
def test_the_order_of_the_rows_does_not_matter(margin):
    """Draws follow the index, statistics are the batch's: so any split over ranks is the same."""
    cosine, norms = rows()
    order = torch.randperm(len(cosine), generator=torch.Generator().manual_seed(1))
    whole = apply(margin, cosine, norms)
    shuffled = apply(margin, cosine[order], norms[order], index=order)
    torch.testing.assert_close(shuffled.cosine, whole.cosine[order], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(shuffled.slope, whole.slope[order], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(shuffled.state, whole.state, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@every_margin
def test_cosines_beyond_one_are_taken_as_one_and_everything_is_finite(margin, dtype):
    cosine = torch.tensor([1.0, 1.0 + 3e-7, -1.0, -1.0 - 3e-7], dtype=dtype)
    for norms in (torch.full_like(cosine, 0.0), torch.full_like(cosine, 1e4)):
        target = apply(margin, cosine, norms, index=torch.zeros(4, dtype=torch.int64))
        assert all(torch.isfinite(part).all() for part in target if part is not None)
        assert torch.equal(target.cosine[0], target.cosine[1])
        assert torch.equal(target.cosine[2], target.cosine[3])


@every_margin
def test_nan_stays_nan(margin):
    """A poisoned target must reach the loss: where() must not replace it by a fallback."""
    cosine = torch.tensor([math.nan, 0.3, -0.99])
    assert apply(margin, cosine).cosine.isnan().tolist()[0]
    if isinstance(margin, CurricularFace):
        assert apply(margin, cosine).state.isnan().all()
    if isinstance(margin, (AdaFace, MagFace)):
        poisoned = apply(margin, torch.full((3,), 0.3), torch.tensor([math.nan, 20.0, 20.0]))
        assert poisoned.cosine[0].isnan()
        assert poisoned.state is None or poisoned.state.isnan().all()


@every_margin
def test_every_margin_is_graph_safe(margin):
    cosine, norms = rows(torch.float32)
    context = context_of(margin, len(cosine), torch.float32)
    target_cosine = cosine if margin.uses_target_for_negatives else None
    with GraphSafety():
        target = margin(cosine, norms, context)
        replace(margin, filter_above=0.5).negatives(target_cosine, context).bend(cosine[:, None])
    assert target.cosine.shape == target.slope.shape == cosine.shape


def test_adaface_statistics_against_numbers_worked_by_hand():
    """Norms 10, 20, 60: mean 30, unbiased variance (400 + 100 + 900) / 2 = 700."""
    norms = torch.tensor([10.0, 20.0, 60.0], dtype=torch.float64)
    cosine = torch.tensor([0.5, 0.5, 0.5], dtype=torch.float64)
    margin = AdaFace(margin=0.4, h=0.333, t_alpha=0.01)
    assert margin.initial_state() == (20.0, 100.0)
    target = margin(cosine, norms, first_step(margin, 3))
    mean, std = 20.1, 99 + 0.01 * math.sqrt(700)
    assert target.state.tolist() == pytest.approx([mean, std], rel=1e-12)
    quality = (60 - mean) / (std + 0.001) * 0.333  # the statistics already include this batch
    wanted = math.cos(math.pi / 3 - 0.4 * quality) - 0.4 - 0.4 * quality
    assert target.cosine[2].item() == pytest.approx(wanted, rel=1e-12)

    clipped = margin(cosine, torch.tensor([0.0, 500.0, 50.0]).double(), first_step(margin, 3))
    assert clipped.state[0].item() == pytest.approx(0.99 * 20 + 0.01 * 150.001 / 3, rel=1e-12)
    # One norm has no unbiased deviation: the running one stays.
    alone = margin(cosine[:1], norms[:1], first_step(margin, 1))
    assert alone.state.tolist() == pytest.approx([19.9, 100.0], rel=1e-12)


def test_elastic_draws_have_their_mean_and_deviation():
    count = 100_000
    right_angles = torch.zeros(count, dtype=torch.float64)
    for margin, mean, std in [
        (ElasticArcFace(), 0.5, 0.05),
        (ElasticArcFace(plus=True), 0.5, 0.0175),
        (ElasticCosFace(), 0.35, 0.05),
        (ElasticCosFace(plus=True), 0.35, 0.02),
        (ElasticCosFace(margin=0.6, std=0.1), 0.6, 0.1),
    ]:
        lowered = -apply(margin, right_angles).cosine
        drawn = lowered.asin() if isinstance(margin, ElasticArcFace) else lowered
        assert abs(drawn.mean() - mean) < 5 * std / math.sqrt(count)
        assert abs(drawn.std() / std - 1) < 0.02
    wide = -apply(ElasticCosFace(margin=0.5, std=1.0), right_angles).cosine
    assert wide.min() == 0
    assert wide.max() == 1


def test_elastic_draws_change_with_the_key_and_the_index_alone():
    cosine = torch.zeros(50, dtype=torch.float64)
    for margin in (ElasticArcFace(), ElasticCosFace()):
        first = apply(margin, cosine).cosine
        assert torch.equal(first, apply(margin, cosine).cosine)
        assert not (first == apply(margin, cosine, key=torch.tensor(7)).cosine).any()
        later = apply(margin, cosine[:20], index=torch.arange(30, 50)).cosine
        assert torch.equal(later, first[30:])


def test_elastic_plus_gives_the_largest_draws_to_the_smallest_cosines():
    cosine = torch.rand(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plain = cosine - apply(ElasticCosFace(std=0.1), cosine).cosine
    plus = cosine - apply(ElasticCosFace(std=0.1, plus=True), cosine).cosine
    assert (plus[cosine.argsort()].diff() <= 1e-15).all()
    torch.testing.assert_close(plus.sort().values, plain.sort().values, rtol=0, atol=1e-15)
    # Not what argsort instead of its inverse would do.
    assert not torch.equal(plus, plain.sort(descending=True).values[cosine.argsort()])


@pytest.mark.parametrize("filter_above", [None, 0.4])
@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0])
def test_curricular_negatives_match_scalar_arithmetic(factor, filter_above):
    margin = CurricularFace(filter_above=filter_above)
    target_cosine, norms = rows()
    context = context_of(margin, len(COSINES))._replace(
        factor=torch.tensor(factor, dtype=torch.float64),
        state=torch.tensor([0.3], dtype=torch.float64),
    )
    negatives = margin.negatives(target_cosine, context)
    target = margin(target_cosine, norms, context)
    assert torch.equal(negatives.easing, target.state[0]), "both must use one t"
    assert negatives.easing.item() == pytest.approx(0.01 * sum(COSINES) / 22 + 0.297, rel=1e-12)

    cosine = torch.linspace(-0.97, 0.97, 22 * 20, dtype=torch.float64).view(20, 22).T  # (G, n)
    bent, slope = negatives.bend(cosine)
    for row, of_target in enumerate(COSINES):
        for column in range(20):
            value, by_cosine = scalar_negative(
                margin, cosine[row, column].item(), of_target, factor, target.state.tolist()
            )
            assert bent[row, column].item() == pytest.approx(value, rel=1e-12)
            if value > -math.inf:
                assert slope[row, column].item() == pytest.approx(by_cosine, rel=1e-12)


@every_margin
def test_negatives_are_filtered_with_every_margin_and_otherwise_left_alone(margin):
    cosine, _ = rows()
    context = context_of(margin, len(cosine))
    assert isinstance(margin, CurricularFace) == margin.uses_target_for_negatives
    if margin.uses_target_for_negatives:
        assert margin.negatives(cosine, context).filter_above == math.inf
        filtered = replace(margin, filter_above=0.5).negatives(cosine, context)
        assert filtered.filter_above == 0.5
        assert torch.equal(filtered.hard_above, margin.negatives(cosine, context).hard_above)
    else:
        plain = margin.negatives(None, context)
        assert plain._replace(threshold=None) == Negatives()
        assert isinstance(margin, UniFace) == (plain.threshold is not None)
        filtered = replace(margin, filter_above=0.5).negatives(None, context)
        assert filtered._replace(threshold=None) == Negatives(filter_above=0.5)


@every_margin
def test_margins_are_values(margin):
    copy = pickle.loads(pickle.dumps(margin))
    assert copy == margin
    assert hash(copy) == hash(margin)
    assert replace(margin, scale=32.0) != margin
    with pytest.raises(AttributeError):
        margin.scale = 1.0


@pytest.mark.parametrize(
    ("kind", "params"),
    [
        (ArcFace, {"margin": -0.1}),
        (ArcFace, {"margin": math.pi / 2}),
        (ArcFace, {"margin": math.nan}),
        (ArcFace, {"margin": "0.5"}),
        (ArcFace, {"gradient": "detached"}),
        (ArcFace, {"easy_margin": 1}),
        (CosFace, {"margin": 1.01}),
        (CosFace, {"margin": True}),
        (CosFace, {"scale": math.inf}),
        (Softmax, {"scale": 0.0}),
        (Softmax, {"scale": -64.0}),
        (Softmax, {"filter_above": -1}),
        (Softmax, {"filter_above": 1.1}),
        (CurricularFace, {"filter_above": math.nan}),
        (CurricularFace, {"margin": 1.6}),
        (UniFace, {"margin": 1.1}),
        (UniFace, {"negative_weight": 0}),
        (SphereFace, {"margin": 0.9}),
        (SphereFace, {"margin": 8.1}),
        (Combined, {"m1": 0.9}),
        (Combined, {"m2": 1.6}),
        (Combined, {"m3": 1.1}),
        (MagFace, {"l_a": 0}),
        (MagFace, {"l_a": 110}),
        (MagFace, {"u_a": math.inf}),
        (MagFace, {"l_margin": -0.1}),
        (MagFace, {"l_margin": 0.81}),
        (MagFace, {"u_margin": 1.6}),
        (MagFace, {"lambda_g": -1}),
        (MagFace, {"easy_margin": 1}),
        (AdaFace, {"margin": 1.1}),
        (AdaFace, {"h": 0}),
        (AdaFace, {"t_alpha": 0}),
        (AdaFace, {"t_alpha": 1.1}),
        (ElasticArcFace, {"margin": 1.6}),
        (ElasticArcFace, {"std": -0.1}),
        (ElasticArcFace, {"plus": None}),
        (ElasticCosFace, {"margin": 1.1}),
        (ElasticCosFace, {"std": 1.1}),
    ],
    ids=str,
)
def test_values_outside_the_stated_range_are_refused(kind, params):
    with pytest.raises(ValueError, match=f"{kind.__name__}: .*, expected"):
        kind(**params)


def test_unknown_names_and_parameters_are_refused_with_what_is_allowed():
    with pytest.raises(ValueError, match="'acface', expected one of softmax, sphereface, cosface"):
        create_margin("acface")
    with pytest.raises(
        ValueError, match="no parameter m; it has scale, gradient, filter_above, margin"
    ):
        create_margin("arcface", m=0.5)
    with pytest.raises(ValueError, match="no parameter margin"):
        create_margin("softmax", margin=0.5)
    with pytest.raises(ValueError, match=r"margin=2.0, expected a finite number in \[0, π/2\)"):
        create_margin("arcface", margin=2.0)


def test_create_margin_equals_the_class():
    for name, kind in MARGINS.items():
        assert create_margin(name) == kind()
        assert create_margin(name, scale=30, filter_above=0.3) == kind(scale=30, filter_above=0.3)
    assert set(MARGINS.values()) == {type(margin) for margin in CASES}
