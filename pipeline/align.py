"""Five landmarks to a crop: the similarity transform to ArcFace's template, and the warp.

The crops are those that InsightFace's norm_crop makes, with which the public training and test sets
are aligned: the template's points, no reflection, bilinear interpolation, black outside the image.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from facestream import UserError

SIZE = 112
# Left eye, right eye, nose tip, left and right corner of the mouth, as they lie in the picture:
# (x, y) in a crop of SIZE × SIZE pixels, from the center of its top left pixel.
TEMPLATE = np.array(
    [
        [38.2946, 51.6963],
        [73.5318, 51.5014],
        [56.0252, 71.7366],
        [41.5493, 92.3655],
        [70.7299, 92.2041],
    ]
)


class LandmarkError(UserError):
    """Landmarks to which no crop can be made; the reason, without the image's name."""


class Fit(NamedTuple):
    """The similarity transforms of some faces, with shapes (...).

    Attributes:
        matrix: (..., 2, 3) float64, pixels of the image to pixels of the crop.
        error: (...) float64, the landmarks' root mean square distance from the template, in pixels
            of a crop of 112 pixels whatever the size: up to 6 for a face turned by 30 degrees, 16
            for a profile, 15 to 23 for points in another order.
        roll: (...) float64, by how many degrees the face is turned clockwise in the image.
    """

    matrix: np.ndarray
    error: np.ndarray
    roll: np.ndarray


def fit(landmarks: np.ndarray, *, size: int = SIZE) -> Fit:
    """Least squares over rotation, scale and shift: Umeyama's, which in the plane needs no SVD.

    Args:
        landmarks: (..., 5, 2), (x, y) in pixels of the image, in the template's order.
        size: of the crop, in pixels.

    Raises:
        LandmarkError: landmarks that are not finite, or all in one place.
    """
    points = np.asarray(landmarks, np.float64)
    if points.shape[-2:] != (5, 2):
        raise ValueError(f"found landmarks of shape {points.shape}, expected (..., 5, 2)")
    if not (np.abs(points) < 1e9).all():  # NaN, too
        raise LandmarkError("a landmark is not finite, or far outside any image")
    scale = size / SIZE
    source = points[..., 0] + 1j * points[..., 1]  # (..., 5); a similarity is a * z + b
    target = scale * (TEMPLATE[:, 0] + 1j * TEMPLATE[:, 1])
    center, about = source.mean(axis=-1, keepdims=True), target.mean()
    spread = (np.abs(source - center) ** 2).sum(axis=-1)
    if (spread < 1e-6).any():
        raise LandmarkError("all landmarks are in one place")
    a = (np.conj(source - center) * (target - about)).sum(axis=-1) / spread
    b = about - a * center[..., 0]
    off = a[..., None] * source + b[..., None] - target
    matrix = np.stack([a.real, -a.imag, b.real, a.imag, a.real, b.imag], axis=-1)
    return Fit(
        matrix.reshape(*a.shape, 2, 3),
        np.sqrt((np.abs(off) ** 2).mean(axis=-1)) / scale,
        -np.degrees(np.angle(a)),
    )


def align(pixels: np.ndarray, landmarks: np.ndarray, *, size: int = SIZE) -> np.ndarray:
    """The crop in which the landmarks lie as near the template's as a similarity brings them.

    Args:
        pixels: (H, W, 3) uint8.
        landmarks: (5, 2), (x, y) in pixels, in the template's order.
        size: of the crop, in pixels.

    Returns:
        (size, size, 3) uint8.

    Raises LandmarkError as `fit` does, and for landmarks that no similarity brings to the template.
    """
    matrix = fit(landmarks, size=size).matrix
    determinant = matrix[0, 0] ** 2 + matrix[1, 0] ** 2
    if determinant < 1e-12:
        raise LandmarkError("the landmarks lie as those of no face do")
    rotation = np.array([[matrix[0, 0], matrix[1, 0]], [matrix[0, 1], matrix[1, 1]]]) / determinant
    return warp(pixels, np.column_stack([rotation, -rotation @ matrix[:, 2]]), size=size)


def warp(pixels: np.ndarray, inverse: np.ndarray, *, size: int) -> np.ndarray:
    """OpenCV's warpAffine with bilinear interpolation and a black border, to one grey level.

    That is OpenCV 5, which computes places exactly; earlier ones round them to 1/32 pixel, which
    may be more at sharp edges.

    Args:
        pixels: (H, W, 3) uint8.
        inverse: (2, 3), pixels of the crop to pixels of the image.

    Returns:
        (size, size, 3) uint8.
    """
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or not pixels.size:
        raise ValueError(f"found {pixels.dtype} {pixels.shape}, expected uint8 (H, W, 3)")
    height, width = pixels.shape[:2]
    steps = np.arange(size, dtype=np.float64)
    down, along = steps[:, None], steps[None, :]
    x = inverse[0, 0] * along + inverse[0, 1] * down + inverse[0, 2]  # (size, size)
    y = inverse[1, 0] * along + inverse[1, 1] * down + inverse[1, 2]
    left, right, share_x, inside_x = _neighbors(x, width)
    above, below, share_y, inside_y = _neighbors(y, height)
    above *= width
    below *= width
    flat = pixels.reshape(-1, 3)
    upper = _between(flat, above + left, above + right, share_x)
    lower = _between(flat, below + left, below + right, share_x)
    lower -= upper
    lower *= share_y
    upper += lower
    # Between a pixel of the border and the black outside it.
    for inside in (inside_x, inside_y):
        if inside is not None:
            upper *= inside
    upper += 0.5
    return upper.astype(np.uint8).reshape(size, size, 3)


def _neighbors(
    at: np.ndarray, length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    """The two pixels around each coordinate, those of the border also for what is outside.

    Args:
        at: (size, size).

    Returns:
        Two (size * size,) of indices; the second's share and how much of both is inside the image,
        (3 * size * size,) float32, for each channel; None where all is.
    """
    at = at.ravel()
    inside = None
    if at.min() < 0 or at.max() > length - 1:
        inside = _by_channel(np.clip(at + 1, 0, 1) * np.clip(length - at, 0, 1))
        at = at.clip(0, length - 1)
    first = at.astype(np.intp)
    share = _by_channel(at - first)
    return first, np.minimum(first + 1, length - 1), share, inside


def _by_channel(of_pixels: np.ndarray) -> np.ndarray:
    return np.repeat(of_pixels.astype(np.float32), 3)


def _between(flat: np.ndarray, one: np.ndarray, other: np.ndarray, share: np.ndarray) -> np.ndarray:
    """(3 * size * size,) float32: of the way from one pixel to the other this share."""
    start = flat.take(one, axis=0).ravel().astype(np.float32)
    way = flat.take(other, axis=0).ravel() - start
    way *= share
    start += way
    return start
