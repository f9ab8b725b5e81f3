"""Margins: what happens to the target cosine before the softmax. A few lines each."""

from __future__ import annotations

from dataclasses import fields

from heads.margins.base import GRADIENTS, Margin, StepContext, Target
from heads.margins.curricular import CurricularFace
from heads.margins.elastic import ElasticArcFace, ElasticCosFace
from heads.margins.fixed import ArcFace, Combined, CosFace, Softmax, SphereFace
from heads.margins.quality import AdaFace, MagFace

__all__ = [
    "GRADIENTS",
    "MARGINS",
    "AdaFace",
    "ArcFace",
    "Combined",
    "CosFace",
    "CurricularFace",
    "ElasticArcFace",
    "ElasticCosFace",
    "MagFace",
    "Margin",
    "Softmax",
    "SphereFace",
    "StepContext",
    "Target",
    "create_margin",
]

MARGINS: dict[str, type[Margin]] = {
    "softmax": Softmax,
    "sphereface": SphereFace,
    "cosface": CosFace,
    "arcface": ArcFace,
    "combined": Combined,
    "magface": MagFace,
    "adaface": AdaFace,
    "elastic_arcface": ElasticArcFace,
    "elastic_cosface": ElasticCosFace,
    "curricularface": CurricularFace,
}


def create_margin(name: str, /, **params: object) -> Margin:
    """The margin called `name` (a key of MARGINS), built with its own parameters.

    Raises ValueError for an unknown name, an unknown parameter or a value outside its range.
    """
    if name not in MARGINS:
        raise ValueError(f"unknown margin {name!r}, expected one of {', '.join(MARGINS)}")
    allowed = [field.name for field in fields(MARGINS[name])]
    unknown = [param for param in params if param not in allowed]
    if unknown:
        raise ValueError(
            f"margin {name!r} has no parameter {', '.join(unknown)}; it has {', '.join(allowed)}"
        )
    return MARGINS[name](**params)
