"""Margins: the slopes are derivatives, targets never fall, and the reference checks itself."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from heads.margins import (
    AdaFace,
    ArcFace,
    Combined,
    CosFace,
    CurricularFace,
    MagFace,
    Softmax,
    SphereFace,
)
from tests.heads.head_reference import first_step, scalar_head
from tests.heads.margin_cases import CASES, apply, every_margin

# Off 0, where easy margins jump.
COSINES = [-0.9999, -0.95, -0.9, -0.85, -0.5, -0.08, -0.06, 0.01, 0.3, 0.8, 0.9999]
# Off the ends of MagFace's clamp, where the derivative jumps.
NORMS = [0.5, 5.0, 11.0, 12.0, 20.0, 40.0, 60.0, 90.0, 99.0, 109.0, 150.0]


def rows() -> tuple[Tensor, Tensor]:
    return torch.tensor(COSINES, dtype=torch.float64), torch.tensor(NORMS, dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_makes_no_slope_negative_at_the_border(dtype):
    """θ + m = π, where the slope is 0 but for rounding, for many a margin."""
    norms = torch.linspace(1, 100, 2_000, dtype=dtype)
    margin = MagFace(l_a=1, u_a=100, l_margin=0.01, u_margin=1.57)
    border = -torch.cos(0.01 + (1.57 - 0.01) / (100 - 1) * (norms - 1))
    for cosine in (border, border.nextafter(torch.ones_like(border))):
        assert (apply(margin, cosine, norms).slope >= 0).all()


@pytest.mark.parametrize("factor", [0.5, 1.0])
@every_margin
def test_exact_slope_is_the_finite_difference(margin, factor):
    cosine, norms = rows()
    force = {"factor": torch.tensor(factor, dtype=torch.float64)}
    step = 1e-7
    higher, lower = (apply(margin, cosine + way, norms, **force).cosine for way in (step, -step))
    slope = apply(margin, cosine, norms, **force).slope
    torch.testing.assert_close((higher - lower) / (2 * step), slope, rtol=1e-5, atol=1e-6)


@every_margin
def test_straight_through_changes_the_slope_to_one_and_nothing_else(margin):
    cosine, norms = rows()
    exact = apply(margin, cosine, norms)
    straight = apply(replace(margin, gradient="straight_through"), cosine, norms)
    assert torch.equal(straight.slope, torch.ones_like(cosine))
    for found, wanted in zip(straight[:1] + straight[2:], exact[:1] + exact[2:]):
        assert found is wanted or torch.equal(found, wanted)


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("margin", [case for case in CASES if isinstance(case, MagFace)], ids=repr)
def test_magface_norm_slopes_are_finite_differences(margin, factor):
    cosine, norms = rows()
    force = {"factor": torch.tensor(factor, dtype=torch.float64)}
    # Every cosine with every norm, so that each branch of the target meets each side of the clamp.
    cosine, norms = cosine.repeat_interleave(len(NORMS)), norms.repeat(len(COSINES))
    step = 1e-4
    higher, lower = (apply(margin, cosine, norms + way, **force) for way in (step, -step))
    target = apply(margin, cosine, norms, **force)
    by_norm = (higher.cosine - lower.cosine) / (2 * step)
    torch.testing.assert_close(by_norm, target.norm_slope, rtol=1e-6, atol=1e-9)
    by_norm = (higher.penalty - lower.penalty) / (2 * step)
    torch.testing.assert_close(by_norm, target.penalty_slope, rtol=1e-6, atol=1e-9)


def test_magface_norms_beyond_the_clamp_get_no_gradient():
    cosine = torch.full((4,), 0.3)
    target = apply(MagFace(), cosine, torch.tensor([9.9, 10.0, 110.0, 110.1]))
    assert (target.norm_slope != 0).tolist() == [False, True, True, False]
    assert target.penalty_slope.tolist()[::3] == [0, 0]
    assert target.penalty_slope[1] == pytest.approx(35 * (1 / 110**2 - 1 / 100))
    assert abs(target.penalty_slope[2]) < 1e-8, "the penalty is flat at u_a"


def test_only_magface_lets_the_gradient_reach_the_norm():
    cosine, norms = rows()
    for margin in CASES:
        target = apply(margin, cosine, norms.requires_grad_())
        for part in (target.norm_slope, target.penalty, target.penalty_slope):
            assert (part is not None) == isinstance(margin, MagFace)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0])
@every_margin
def test_the_target_never_falls_as_the_cosine_rises(margin, factor, dtype):
    easy = getattr(margin, "easy_margin", False)
    cosine = torch.linspace(-1, 1, 20_001, dtype=dtype)
    sides = [cosine[cosine <= 0], cosine[cosine > 0]] if easy else [cosine]
    for side in sides:
        # One draw for all rows, but where the ranks of the cosines decide who gets which.
        index = torch.arange(len(side)) * getattr(margin, "plus", 0)
        for norm in (1.0, 20.0, 100.0):
            norms = torch.full_like(side, norm)
            force = torch.tensor(factor, dtype=dtype)
            target = apply(margin, side, norms, factor=force, index=index)
            rounding = 4 * torch.finfo(dtype).eps * target.cosine.abs().clamp_min(1)
            assert (target.cosine.diff() >= -rounding[1:]).all()
            assert (target.slope >= 0).all()
            assert (target.cosine <= side + rounding).all(), "a margin only ever lowers the target"


@pytest.mark.parametrize(
    ("margin", "angle"),
    [(MagFace(easy_margin=True), 0.45), (ArcFace(margin=0.6, easy_margin=True), 0.6)],
    ids=repr,
)
def test_an_easy_margin_falls_at_the_right_angle_alone(margin, angle):
    cosine = torch.tensor([0.0, 1e-9], dtype=torch.float64)
    target = apply(margin, cosine, torch.full_like(cosine, 10.0))
    assert target.cosine.tolist() == pytest.approx([0.0, -math.sin(angle)])


def test_arcface_gradient_is_named_and_differs():
    cosine = torch.tensor([0.3], dtype=torch.float64)
    exact = apply(ArcFace(gradient="exact"), cosine)
    straight = apply(ArcFace(gradient="straight_through"), cosine)
    assert torch.equal(exact.cosine, straight.cosine)
    assert straight.slope.item() == 1.0
    assert exact.slope.item() == pytest.approx(
        math.sin(math.acos(0.3) + 0.5) / math.sin(math.acos(0.3))
    )


def test_margins_that_are_special_cases_of_others_agree_with_them():
    """Up to π; ArcFace and Combined go on differently beyond it."""
    cosine = torch.linspace(-0.8, 0.999, 50, dtype=torch.float64)
    for one, other in [
        (Combined(m2=0.5), ArcFace(margin=0.5)),
        (Combined(m2=0.0, m3=0.4), CosFace(margin=0.4)),
        (Combined(m1=1.7, m2=0.0), SphereFace(margin=1.7)),
        (MagFace(l_margin=0.5, u_margin=0.5), ArcFace(margin=0.5)),
        (
            MagFace(l_margin=0.5, u_margin=0.5, easy_margin=True),
            ArcFace(margin=0.5, easy_margin=True),
        ),
        (CurricularFace(margin=0.5), ArcFace(margin=0.5)),
    ]:
        found, wanted = apply(one, cosine), apply(other, cosine)
        torch.testing.assert_close(found.cosine, wanted.cosine, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found.slope, wanted.slope, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "margin",
    [
        Softmax(filter_above=0.2),
        SphereFace(),
        ArcFace(filter_above=0.5),
        Combined(m1=1.35, m2=0.3, m3=0.2),
        MagFace(l_a=1, u_a=5, lambda_g=35, scale=4),
        MagFace(l_a=1, u_a=5, easy_margin=True),
        AdaFace(),
        CurricularFace(margin=0.8),
    ],
    ids=repr,
)
def test_the_reference_gradients_are_those_of_its_loss(margin):
    """Sub-centers, a mask and a filter at once.

    AdaFace detaches the norms, so only centers can tell; CurricularFace the target cosines too, so
    only centers that are nobody's target can.
    """
    generator = torch.Generator().manual_seed(2)
    embeddings = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    centers = torch.randn(10, 4, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 4, 0])
    visible = torch.rand(3, 5, generator=generator) > 0.3
    margin = replace(margin, scale=4.0)
    options = {
        "margin": margin,
        "context": first_step(margin, 3)._replace(factor=torch.tensor(0.8)),
        "subcenters": 2,
        "visible": visible,
    }
    found = scalar_head(embeddings, centers, labels, **options)
    own = torch.nn.functional.one_hot(labels, 5).bool()
    assert torch.isneginf(found.logits[~visible & ~own]).all()
    assert torch.isfinite(found.logits[own]).all()
    everywhere, negatives = range(centers.numel()), range(2 * 4, 8 * 4)
    detached = isinstance(margin, CurricularFace)
    checked = [(centers, found.center_grad, negatives if detached else everywhere)]
    if not isinstance(margin, (AdaFace, CurricularFace)):
        checked.append((embeddings, found.embedding_grad, range(embeddings.numel())))
    step = 1e-6
    for tensor, grad, places in checked:
        for place in places:
            losses = []
            for way in (step, -step):
                moved = tensor.clone()
                moved.view(-1)[place] += way
                pair = (moved, centers) if tensor is embeddings else (embeddings, moved)
                losses.append(scalar_head(*pair, labels, **options).loss)
            slope = (losses[0] - losses[1]) / (2 * step)
            torch.testing.assert_close(slope, grad.view(-1)[place], rtol=1e-5, atol=1e-8)


def test_the_reference_takes_the_first_of_the_nearest_sub_centers():
    generator = torch.Generator().manual_seed(4)
    embeddings = torch.randn(2, 4, generator=generator, dtype=torch.float64)
    centers = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    centers[3] = centers[2]
    found = scalar_head(
        embeddings, centers, torch.tensor([0, 2]), margin=Softmax(scale=4.0), subcenters=2
    )
    unit = torch.nn.functional.normalize
    cosines = (unit(embeddings) @ unit(centers).T).view(2, 3, 2).amax(2)
    torch.testing.assert_close(found.logits, 4 * cosines, rtol=1e-12, atol=0)
    assert found.center_grad[2].all()
    assert not found.center_grad[3].any()
