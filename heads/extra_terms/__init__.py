"""Terms of the loss that are no function of the target cosine: see heads.extra_terms.base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from facestream import UserError
from heads.extra_terms.base import ExtraTerm, TermInput, TermShare
from heads.extra_terms.classifiability import Classifiability
from heads.extra_terms.sample_to_sample import SampleToSample
from heads.extra_terms.total import add_up

__all__ = [
    "EXTRA_TERMS",
    "Classifiability",
    "ExtraTerm",
    "SampleToSample",
    "TermInput",
    "TermShare",
    "add_up",
    "create_extra_terms",
]

EXTRA_TERMS: dict[str, type[ExtraTerm]] = {
    "sample_to_sample": SampleToSample,
    "classifiability": Classifiability,
}


def create_extra_terms(wanted: Mapping[str, Any]) -> tuple[ExtraTerm, ...]:
    """Terms by name (keys of EXTRA_TERMS), each with its own parameters as a mapping.

    Raises UserError for an unknown name, an unknown parameter or a value outside its range.
    """
    return tuple(_create(name, params) for name, params in wanted.items())


def _create(name: str, params: Any) -> ExtraTerm:
    if name not in EXTRA_TERMS:
        raise UserError(f"unknown extra term {name!r}, expected one of {', '.join(EXTRA_TERMS)}")
    if not isinstance(params, Mapping):
        raise UserError(
            f"extra term {name!r}: found {params!r}, expected its parameters, as {{weight: 1}}, or "
            "{} for the defaults"
        )
    allowed = [field.name for field in fields(EXTRA_TERMS[name])]
    unknown = [str(param) for param in params if param not in allowed]
    if unknown:
        raise UserError(
            f"extra term {name!r} has no parameter {', '.join(unknown)}; it has "
            f"{', '.join(allowed)}"
        )
    return EXTRA_TERMS[name](**params)
