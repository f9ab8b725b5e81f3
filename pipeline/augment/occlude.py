"""A recipe that hides what lies between landmarks: glasses, masks, hands before a face."""

from __future__ import annotations

import numpy as np

from pipeline.augment.erase import erase
from pipeline.augment.recipe import Argument, Draw, Recipe

# What is hidden: landmarks (left eye, right eye, nose, left and right corner of the mouth), and how
# far beyond them, across and down, in distances of the eyes.
_PARTS = (
    ((0, 1), (0.45, 0.3)),  # glasses
    ((2, 3, 4), (0.45, 0.35)),  # a mask
    ((0,), (0.35, 0.3)),
    ((1,), (0.35, 0.3)),
    ((3, 4), (0.2, 0.25)),  # the mouth
)


def _draw_occlude(draw: Draw) -> dict[str, Argument]:
    """In 30 % of the images whose landmarks are known one part of the face is a drawn color."""
    points = draw.landmarks()  # (B, 5, 2)
    which = draw.integers("occlude.part", 0, len(_PARTS) - 1)
    apart = np.linalg.norm(points[:, 1] - points[:, 0], axis=1)[:, None]
    low, high = np.empty((2, len(draw), 2))
    for part, (chosen, beyond) in enumerate(_PARTS):
        here, reach = which == part, np.array(beyond)
        low[here] = (points[:, chosen].min(1) - reach * apart)[here]
        high[here] = (points[:, chosen].max(1) + reach * apart)[here]
    stretch = [draw(f"occlude.stretch_{axis}", 0.7, 1.2) for axis in "xy"]
    middle, half = (low + high) / 2, (high - low) / 2 * np.stack(stretch, axis=-1)
    low, high = (np.clip(middle + side * half, 0, draw.size) for side in (-1, 1))
    known = np.isfinite(points).all((1, 2))
    anchor, shape = np.nan_to_num(low[:, ::-1]), np.nan_to_num((high - low)[:, ::-1])
    color = np.stack([draw(f"occlude.{channel}", 0, 255) for channel in "rgb"], axis=-1)
    return {
        "erased": draw.chance("occlude.any", 0.3) & known,
        "anchor": np.rint(anchor).astype(np.float32),  # (B, 2): rows, columns
        "shape": np.rint(shape).astype(np.float32),
        "color": np.rint(color).astype(np.float32),
    }


OCCLUDE = Recipe(_draw_occlude, erase, needs=("landmarks",))
