"""Landmarks in another order than the template's: recognized by how badly they fit it."""

from __future__ import annotations

import numpy as np

from pipeline.align import LandmarkError, fit

# What was written as the ten numbers of a line, by the place of each in the expected order.
_ORDERS = {
    "with left and right exchanged (the right eye first)": [2, 3, 0, 1, 4, 5, 8, 9, 6, 7],
    "with y before x": [1, 0, 3, 2, 5, 4, 7, 6, 9, 8],
    "with the mouth before the eyes": [6, 7, 8, 9, 4, 5, 0, 1, 2, 3],
    "with the nose first": [2, 3, 4, 5, 0, 1, 6, 7, 8, 9],
    "with the nose last": [0, 1, 2, 3, 8, 9, 4, 5, 6, 7],
    "with all x before all y": [*np.stack([np.arange(5), np.arange(5) + 5], axis=1).ravel()],
}
_BAD = 11.0  # pixels; a set of profiles alone may be as bad, but no other order mends it
_TURNED = 60.0  # degrees


def warning_of_order(points: np.ndarray) -> str | None:
    """What is likely wrong with the landmarks of a set, and how to mend it; None where nothing is.

    Args:
        points: (N, 5, 2), as `fit` takes them.
    """
    error, roll = _typical(points)
    if error <= _BAD:
        if abs(roll) < _TURNED:
            return None
        return (
            f"the faces lie turned by {roll:.0f} degrees: landmarks are expected in the photo as "
            "viewers show it, turned upright by its EXIF note"
        )
    if not np.isfinite(error):
        return "the five landmarks of every image are in one place"
    flat = points.reshape(-1, 10)
    fits = {order: _typical(flat[:, places].reshape(-1, 5, 2)) for order, places in _ORDERS.items()}
    best = min(other for other, _ in fits.values())
    # Exchanged sides are a mirror image, and so are exchanged axes: it is the turn that parts them.
    near = {order: turn for order, (other, turn) in fits.items() if other < 1.2 * best + 0.5}
    if best > 0.7 * error:
        return (
            f"the landmarks fit badly, with a median error of {error:.1f} pixels, and no "
            "order that is known here mends it: look at the contact sheet"
        )
    likely = min(near, key=lambda order: abs(near[order]))
    return (
        f"the landmarks look like those of a list {likely}: their error is {error:.1f} pixels, "
        f"and {fits[likely][0]:.1f} if it is so. Expected left eye, right eye, nose, left and "
        "right corner of the mouth, as they lie in the picture, x before y"
    )


def _typical(points: np.ndarray) -> tuple[float, float]:
    """The median error in pixels, and the median turn in degrees; infinity where nothing fits."""
    spread = points.std(axis=1).max(axis=1)
    try:
        fits = fit(points[(spread > 0.1)])
    except LandmarkError:
        return np.inf, 0.0
    if not len(fits.error):
        return np.inf, 0.0
    # Turns go round: their mean direction is none of a list of angles.
    direction = np.exp(1j * np.radians(fits.roll)).mean()
    return float(np.median(fits.error)), float(np.degrees(np.angle(direction)))
