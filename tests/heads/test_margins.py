"""Margins: values and slopes against scalar arithmetic, at the ends of the range and beyond."""

from __future__ import annotations

import math

import pytest
import torch

from heads import ArcFace, CosFace, Margin, Softmax, create_margin
from tests.heads.head_reference import scalar_target

MARGINS = [
    ("softmax", 0.0),
    ("cosface", 0.0),
    ("cosface", 0.4),
    ("arcface", 0.0),
    ("arcface", 0.5),
    ("arcface", 1.5),
]
# Both sides of π − m for each angle above, and within 1e-4 of the ends.
COSINES = [-0.9999, -0.95, -0.9, -0.85, -0.5, -0.08, -0.06, 0.0, 0.3, 0.8, 0.9999]


def build(name: str, margin: float, gradient: str = "exact") -> Margin:
    params = {} if name == "softmax" else {"margin": margin}
    return create_margin(name, gradient=gradient, **params)


def norms_like(cosine: torch.Tensor) -> torch.Tensor:
    return torch.full_like(cosine, 20.0)


@pytest.mark.parametrize("gradient", ["exact", "straight_through"])
@pytest.mark.parametrize(("name", "margin"), MARGINS)
def test_cosine_and_slope_match_scalar_arithmetic(name, margin, gradient):
    expected = torch.tensor(
        [scalar_target(name, cosine, margin, gradient) for cosine in COSINES], dtype=torch.float64
    )
    # Near the ends a float32 cosine knows 1 - cos² to three or four digits, and so the slope.
    for dtype, cosine_error, slope_error in [
        (torch.float64, 1e-9, 1e-9),
        (torch.float32, 3e-6, 1e-3),
    ]:
        cosine = torch.tensor(COSINES, dtype=dtype)
        target = build(name, margin, gradient)(cosine, norms_like(cosine))
        assert target.cosine.dtype == target.slope.dtype == dtype
        for found, column, error in zip(target, expected.unbind(1), (cosine_error, slope_error)):
            torch.testing.assert_close(found.double(), column, rtol=error, atol=error)


@pytest.mark.parametrize(("name", "margin"), MARGINS)
def test_exact_slope_is_the_finite_difference(name, margin):
    bend = build(name, margin)
    cosine = torch.tensor(COSINES, dtype=torch.float64)
    step = 1e-7
    higher, lower = (bend(cosine + way, norms_like(cosine)).cosine for way in (step, -step))
    slope = bend(cosine, norms_like(cosine)).slope
    torch.testing.assert_close((higher - lower) / (2 * step), slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "margin"), MARGINS)
def test_margined_cosine_never_falls_as_the_cosine_rises(name, margin, dtype):
    cosine = torch.linspace(-1, 1, 20_001, dtype=dtype)
    target = build(name, margin)(cosine, norms_like(cosine))
    rounding = 4 * torch.finfo(dtype).eps
    assert (target.cosine.diff() >= -rounding).all()
    assert (target.slope >= -rounding).all()
    assert (target.cosine <= cosine + rounding).all(), "a margin only ever lowers the target"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "margin"), MARGINS)
def test_cosines_beyond_one_are_taken_as_one_and_everything_is_finite(name, margin, dtype):
    cosine = torch.tensor([1.0, 1.0 + 3e-7, -1.0, -1.0 - 3e-7], dtype=dtype)
    target = build(name, margin)(cosine, norms_like(cosine))
    assert torch.isfinite(torch.stack(target)).all()
    assert torch.equal(target.cosine[0], target.cosine[1])
    assert torch.equal(target.cosine[2], target.cosine[3])


@pytest.mark.parametrize(("name", "margin"), MARGINS)
def test_nan_cosine_stays_nan(name, margin):
    """A poisoned target must reach the loss: where() must not replace it by a fallback."""
    cosine = torch.tensor([math.nan])
    assert build(name, margin)(cosine, norms_like(cosine)).cosine.isnan().all()


def test_arcface_gradient_is_named_and_differs():
    cosine = torch.tensor([0.3], dtype=torch.float64)
    exact = ArcFace(gradient="exact")(cosine, norms_like(cosine))
    straight = ArcFace(gradient="straight_through")(cosine, norms_like(cosine))
    assert torch.equal(exact.cosine, straight.cosine)
    assert straight.slope.item() == 1.0
    assert exact.slope.item() == pytest.approx(
        math.sin(math.acos(0.3) + 0.5) / math.sin(math.acos(0.3))
    )


@pytest.mark.parametrize(
    "build_bad",
    [
        lambda: ArcFace(margin=-0.1),
        lambda: ArcFace(margin=math.pi / 2),
        lambda: ArcFace(margin=math.nan),
        lambda: ArcFace(margin="0.5"),
        lambda: CosFace(margin=1.01),
        lambda: CosFace(margin=True),
        lambda: Softmax(scale=0.0),
        lambda: Softmax(scale=-64.0),
        lambda: CosFace(scale=math.inf),
        lambda: ArcFace(gradient="detached"),
        lambda: create_margin("arcface", margin=2.0),
    ],
)
def test_values_outside_the_stated_range_are_refused(build_bad):
    with pytest.raises(ValueError, match="expected"):
        build_bad()


def test_unknown_names_and_parameters_are_refused_with_what_is_allowed():
    with pytest.raises(ValueError, match="softmax, cosface, arcface"):
        create_margin("acface")
    with pytest.raises(ValueError, match="no parameter m; it has scale, gradient, margin"):
        create_margin("arcface", m=0.5)
    with pytest.raises(ValueError, match="no parameter margin"):
        create_margin("softmax", margin=0.5)


def test_create_margin_equals_the_class():
    assert create_margin("arcface", margin=0.3, scale=30) == ArcFace(margin=0.3, scale=30)
    assert create_margin("cosface") == CosFace()
    assert create_margin("softmax") == Softmax()
