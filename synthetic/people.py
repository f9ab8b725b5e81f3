"""Who is in a picture and how it was taken, as named numbers drawn from a seed.

Lengths are in the face frame: x to the right, y down, z towards the viewer, the origin in the
middle of the face, the unit half its height (the crown is at y = -1, the chin near y = 1).
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np

from facestream import UserError

IDENTITY_STREAM, SHOT_STREAM, PAIR_STREAM = 1, 2, 3

T = TypeVar("T")


def _between(low: float, high: float) -> Any:
    return field(metadata={"range": (low, high)})


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What all images of a person share. A ``*_tone`` is a place along a palette of portrait.py."""

    face_width: float = _between(0.66, 0.84)  # half, at the cheekbones
    forehead: float = _between(0.80, 1.00)  # of face_width, as is jaw
    jaw: float = _between(0.60, 0.94)
    chin_width: float = _between(0.16, 0.40)
    chin_drop: float = _between(0.93, 1.10)
    ear_size: float = _between(0.13, 0.23)
    skin_tone: float = _between(0.0, 1.0)
    skin_warmth: float = _between(0.0, 1.0)
    blush: float = _between(0.0, 1.0)
    freckles: float = _between(-2.0, 1.0)  # none below 0
    hair_tone: float = _between(0.0, 1.0)
    hair_volume: float = _between(0.05, 0.34)
    hair_sides: float = _between(0.02, 0.24)
    hair_length: float = _between(-0.8, 1.4)  # the y where it ends; cut short below 0
    hairline: float = _between(-0.76, -0.42)
    parting: float = _between(-0.22, 0.22)
    fringe_slope: float = _between(-0.28, 0.28)
    curl: float = _between(-0.03, 0.06)  # straight below 0
    eye_y: float = _between(-0.12, 0.06)
    eye_spacing: float = _between(0.29, 0.41)  # from the middle of the face
    eye_width: float = _between(0.125, 0.19)
    eye_height: float = _between(0.45, 0.85)  # of eye_width
    eye_tilt: float = _between(-0.25, 0.35)
    eye_tone: float = _between(0.0, 1.0)
    brow_gap: float = _between(0.17, 0.30)
    brow_length: float = _between(0.18, 0.29)
    brow_thickness: float = _between(0.025, 0.095)
    brow_tilt: float = _between(-0.18, 0.32)
    brow_arch: float = _between(0.00, 0.08)
    nose_length: float = _between(0.32, 0.54)
    nose_width: float = _between(0.09, 0.22)
    nose_bridge: float = _between(0.03, 0.08)
    mouth_gap: float = _between(0.18, 0.29)  # below the nose
    mouth_width: float = _between(0.18, 0.36)
    lip_upper: float = _between(0.03, 0.085)
    lip_lower: float = _between(0.045, 0.12)
    lip_tone: float = _between(0.0, 1.0)
    beard: float = _between(-3.0, 1.0)  # none below 0
    mustache: float = _between(-3.5, 1.0)  # none below 0
    glasses: float = _between(-3.0, 1.0)  # none below 0, then the weight of the frame
    lens_size: float = _between(0.20, 0.28)
    lens_squareness: float = _between(2.0, 5.0)  # exponent of a superellipse
    frame_tone: float = _between(0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Shot:
    """What differs from image to image. Angles in radians, shifts and zoom in image sides."""

    yaw: float = _between(-0.28, 0.28)
    pitch: float = _between(-0.17, 0.17)
    roll: float = _between(-0.16, 0.16)
    shift_x: float = _between(-0.06, 0.06)
    shift_y: float = _between(-0.05, 0.05)
    zoom: float = _between(0.33, 0.40)  # half the height of the face
    light_x: float = _between(-0.60, 0.60)
    light_y: float = _between(-0.45, 0.30)
    exposure: float = _between(0.68, 1.22)
    saturation: float = _between(0.65, 1.1)
    warmth: float = _between(-0.17, 0.17)
    tint: float = _between(-0.06, 0.06)
    smile: float = _between(-0.35, 1.0)
    mouth_open: float = _between(-0.15, 0.12)  # closed below 0
    eyes_open: float = _between(0.55, 1.15)
    gaze: float = _between(-0.3, 0.3)
    brow_raise: float = _between(-0.03, 0.07)
    blur: float = _between(-1.2, 0.7)  # sigma in pixels at size 112, none below 0
    noise: float = _between(1.0, 5.0)  # sigma in gray levels
    occlusion: float = _between(0.0, 1.0)  # chooses what hides a part of the face, if anything


def identity_traits(identity: int, *, seed: int = 0) -> Identity:
    """The traits of person number ``identity``, each independent and uniform on its range.

    UserError unless both numbers are integers in [0, 2**32).
    """
    return _identity_traits(word("seed", seed), word("identity", identity))


@lru_cache(maxsize=1024)
def _identity_traits(seed: int, identity: int) -> Identity:
    return draw(Identity, np.random.default_rng([IDENTITY_STREAM, seed, identity]))


def draw(kind: type[T], rng: np.random.Generator) -> T:
    """An instance of a dataclass of ranges, every field uniform on its own."""
    names, low, span = _ranges(kind)  # type: ignore[arg-type]  # classes are hashable
    return kind(**dict(zip(names, (low + span * rng.random(len(names))).tolist())))


@lru_cache
def _ranges(kind: type) -> tuple[list[str], np.ndarray, np.ndarray]:
    low, high = np.array([f.metadata["range"] for f in fields(kind)]).T
    return [f.name for f in fields(kind)], low, high - low


def word(name: str, value: int) -> int:
    """``value`` as an int in [0, 2**32): one word of a seed sequence, so no two keys can collide.

    UserError, naming the argument, for anything else.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if not 0 <= number < 2**32:
        raise UserError(f"{name} is {value!r}; give an integer from 0 to {2**32 - 1}")
    return number
