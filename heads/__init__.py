"""Embeddings and labels → loss: margin-softmax heads over very many classes."""

from heads.margins import (
    MARGINS,
    OWN_MARGINS,
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
    create_margin,
    register_margin,
)
from heads.partial_fc import PartialFC
from heads.sampling import GroupClasses

__all__ = [
    "MARGINS",
    "OWN_MARGINS",
    "AdaFace",
    "ArcFace",
    "Combined",
    "CosFace",
    "CurricularFace",
    "ElasticArcFace",
    "ElasticCosFace",
    "GroupClasses",
    "MagFace",
    "Margin",
    "PartialFC",
    "Softmax",
    "SphereFace",
    "StepContext",
    "Target",
    "UniFace",
    "create_margin",
    "register_margin",
]
