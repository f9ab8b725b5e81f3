"""Curves of the face frame, and the canvas whose pose projects them on an image."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from synthetic.people import Shot

Color = tuple[int, ...]
Point = tuple[float, float]

CENTER_Y = 0.56  # of the image: room for the hair above, little for the shoulders below

_ANGLES = np.linspace(0, 2 * np.pi, 28, endpoint=False)
CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)  # (28, 2)
SPAN = np.linspace(-1, 1, 13)
HUMP = 1 - SPAN**2


@lru_cache
def _catmull_rom(points: int, samples: int = 6) -> np.ndarray:
    """(points · samples, points) weights of the uniform closed spline through its points.

    Catmull and Rom, "A class of local interpolating splines" (1974).
    """
    t = np.linspace(0, 1, samples, endpoint=False)
    powers = t[:, None] ** np.arange(4)  # (samples, 4)
    basis = np.array([[0, 2, 0, 0], [-1, 0, 1, 0], [2, -5, 4, -1], [-1, 3, -3, 1]]) / 2
    weights = np.zeros((points, samples, points))
    for p in range(points):
        for k, column in enumerate((powers @ basis).T):
            weights[p, :, (p + k - 1) % points] += column
    return weights.reshape(points * samples, points)


def closed(points: Sequence[Point]) -> np.ndarray:
    """The smooth closed curve through the points."""
    return _catmull_rom(len(points)) @ np.asarray(points)


def symmetric(half: Sequence[Point]) -> np.ndarray:
    """The smooth closed curve through a right half, top to bottom, and its mirror image."""
    return closed([*half, *((-x, y) for x, y in reversed(half) if x)])


def ellipse(x: float, y: float, rx: float, ry: float) -> np.ndarray:
    return CIRCLE * (rx, ry) + (x, y)


def band(x: np.ndarray, top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """The polygon between two curves over the same x."""
    return np.stack([np.concatenate([x, x[::-1]]), np.concatenate([top, bottom[::-1]])], axis=1)


def wavy(xy: np.ndarray, curl: float) -> np.ndarray:
    """The outline pushed out and in as curls do; unchanged where curl is not positive."""
    if curl <= 0:
        return xy
    angle = np.arctan2(xy[:, 1], xy[:, 0])
    return xy * (1 + curl * np.sin(17 * angle))[:, None]


class Canvas:
    """A square image, drawn on in the face frame under the pose of a shot."""

    def __init__(self, image: Image.Image, shot: Shot) -> None:
        self.image = image
        self._pen = ImageDraw.Draw(image, "RGBA")
        cos, sin = np.cos(shot.roll), np.sin(shot.roll)
        roll = image.width * shot.zoom * np.array([[cos, sin], [-sin, cos]])
        self._flat = np.diag([np.cos(shot.yaw), np.cos(shot.pitch)]) @ roll  # x, y to pixels
        self._lean = np.array([np.sin(shot.yaw), np.sin(shot.pitch)]) @ roll  # z to pixels
        self._center = image.width * np.array([0.5 + shot.shift_x, CENTER_Y + shot.shift_y])

    def polygon(
        self,
        xy: np.ndarray,
        color: Color,
        *,
        z: float | np.ndarray | None = None,
        alpha: int = 255,
    ) -> None:
        """Fill (N, 2) points at depth z, one or (N,); None is the rounded front of the face."""
        if z is None:
            z = 0.75 * np.sqrt(np.maximum(1 - xy[:, 0] ** 2 - (xy[:, 1] / 1.3) ** 2, 0))
        points = xy @ self._flat + np.multiply.outer(z, self._lean) + self._center  # (N, 2)
        self._pen.polygon(points.ravel().tolist(), fill=(*color, alpha))
