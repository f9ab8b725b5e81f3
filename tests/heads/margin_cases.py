"""Margins of every kind, and rows for them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from heads.margins import (
    AdaFace,
    ArcFace,
    Combined,
    CosFace,
    CurricularFace,
    ElasticArcFace,
    ElasticCosFace,
    MagFace,
    Margin,
    Softmax,
    SphereFace,
    StepContext,
    Target,
    UniFace,
)
from tests.heads.head_reference import first_step

CASES = [
    Softmax(),
    SphereFace(),
    SphereFace(margin=4),
    SphereFace(margin=7.3),
    CosFace(),
    CosFace(margin=1),
    ArcFace(),
    ArcFace(margin=1.5),
    ArcFace(easy_margin=True),
    Combined(),
    Combined(m1=1.35, m2=0.3, m3=0.2),
    Combined(m1=3, m2=1.5, m3=1),
    MagFace(),
    MagFace(easy_margin=True),
    MagFace(l_a=1, u_a=50, l_margin=0, u_margin=1.5, lambda_g=0),
    AdaFace(),
    AdaFace(margin=1, h=1, t_alpha=1),
    ElasticArcFace(),
    ElasticArcFace(plus=True),
    ElasticArcFace(margin=1, std=1),
    ElasticCosFace(),
    ElasticCosFace(plus=True),
    ElasticCosFace(margin=0.5, std=1, plus=True),
    CurricularFace(),
    CurricularFace(margin=1.5),
    UniFace(),
]
every_margin = pytest.mark.parametrize("margin", CASES, ids=repr)
# Both sides of π − m for most angles above, and within 1e-4 of the ends.
COSINES = [-0.9999, -0.95, -0.9, -0.85, -0.5, -0.08, -0.06, 0.0, 0.3, 0.8, 0.9999]
# Both sides of every clamp, the ends of MagFace's included.
NORMS = [0.0005, 5.0, 10.0, 12.0, 20.0, 40.0, 60.0, 90.0, 105.0, 110.0, 150.0]
# Once more the other way round: high norms with low cosines too, and no cosine twice.
COSINES += [0.99 * cosine + 0.001 for cosine in COSINES]
NORMS += NORMS[::-1]


def rows(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return torch.tensor(COSINES, dtype=dtype), torch.tensor(NORMS, dtype=dtype)


def context_of(margin: Margin, count: int, dtype: torch.dtype = torch.float64) -> StepContext:
    """Some later step: a state that is not the first one, a key that is not 0."""
    context = first_step(margin, count, dtype)
    return context._replace(state=context.state * 0.75 + 0.1, key=torch.tensor(-123456789))


def apply(margin: Margin, cosine: Tensor, norms: Tensor | None = None, **replaced) -> Target:
    context = context_of(margin, len(cosine), cosine.dtype)._replace(**replaced)
    return margin(cosine, torch.full_like(cosine, 20.0) if norms is None else norms, context)
