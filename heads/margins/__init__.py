"""Margins: what happens to the target cosine before the softmax. A few lines each."""

from __future__ import annotations

import inspect
import sys
from dataclasses import fields
from typing import Any

from facestream import UserError
from heads.margins.base import GRADIENTS, NO_COLUMNS, WEIGHT, Margin, StepContext, Target
from heads.margins.curricular import CurricularFace
from heads.margins.elastic import ElasticArcFace, ElasticCosFace
from heads.margins.fixed import ArcFace, Combined, CosFace, Softmax, SphereFace
from heads.margins.quality import AdaFace, MagFace
from heads.margins.unified import UniFace

__all__ = [
    "GRADIENTS",
    "MARGINS",
    "NO_COLUMNS",
    "OWN_MARGINS",
    "WEIGHT",
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
    "UniFace",
    "create_margin",
    "register_margin",
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
    "uniface": UniFace,
}
# Of these, what `register_margin` made known: its name and the file that did.
OWN_MARGINS: dict[str, str] = {}


def create_margin(name: str, /, **params: Any) -> Margin:
    """The margin called `name` (a key of MARGINS), built with its own parameters.

    Raises UserError for an unknown name, an unknown parameter or a value outside its range.
    """
    if name not in MARGINS:
        raise UserError(
            f"unknown margin {name!r}, expected one of {', '.join(MARGINS)}, or one that "
            "register_margin() made known: see docs/extending.md"
        )
    allowed = [field.name for field in fields(MARGINS[name])]
    unknown = [param for param in params if param not in allowed]
    if unknown:
        raise UserError(
            f"margin {name!r} has no parameter {', '.join(unknown)}; it has {', '.join(allowed)}"
        )
    return MARGINS[name](**params)


def register_margin(name: str, margin: type[Margin]) -> None:
    """Make a margin of your own known by name to `create_margin` and head.loss.

    The same class defined again, as where a notebook's cell or a configuration file runs twice,
    takes its own place.

    Raises UserError for a name that is another margin's, and for what is no frozen dataclass
    derived from Margin, with `bend` written out.
    """
    is_margin = isinstance(margin, type) and issubclass(margin, Margin)
    if not (
        is_margin and not inspect.isabstract(margin) and "__dataclass_params__" in vars(margin)
    ):
        found = f"class {margin.__qualname__}" if isinstance(margin, type) else repr(margin)
        raise UserError(
            f"margin {name!r}: found {found}, expected a class derived from heads.Margin that "
            "has its own bend() and stands under @dataclass(frozen=True, kw_only=True)"
        )
    known = MARGINS.get(name)
    if known and (known.__module__, known.__qualname__) != (margin.__module__, margin.__qualname__):
        raise UserError(f"there is a margin {name!r} already, {known.__qualname__}: choose another")
    MARGINS[name] = margin
    OWN_MARGINS[name] = sys._getframe(1).f_code.co_filename
