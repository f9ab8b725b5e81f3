"""What SCRFD's and YuNet's outputs mean, each recognized by the shapes of its outputs.

All work on a canvas of height × width pixels, in rows of cells of `stride` pixels. Their five
points are in the template's order: the left eye as it lies in the picture is the person's right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from pipeline.faces.boxes import Faces

_PRIORS = {8: (10, 16, 24), 16: (32, 48), 32: (64, 96), 64: (128, 192, 256)}  # of the older YuNet
_VARIANCES = np.array([0.1, 0.2])


class Layout(NamedTuple):
    """A kind of detector.

    Attributes:
        name: for messages.
        blob: (H, W, 3) uint8 RGB to the network's input (3, H, W) float32.
        decode: outputs, each (n, channels), and the canvas's (height, width) to all faces, likely
            or not.
        surest: score from which a face is one, as the detectors' own programs have it.
        overlap: of two boxes, from which they are one face; likewise.
    """

    name: str
    blob: Callable[[np.ndarray], np.ndarray]
    decode: Callable[[Sequence[np.ndarray], tuple[int, int]], Faces]
    surest: float
    overlap: float


def layout_of(shapes: Sequence[tuple[int, ...]]) -> Layout | None:
    """The detector whose outputs have these shapes, (n, channels) each; None for any other."""
    if any(len(shape) != 2 for shape in shapes):
        return None
    channels = sorted(channels for _, channels in shapes)
    if channels in ([1] * 3 + [4] * 3 + [10] * 3, [1] * 5 + [4] * 5 + [10] * 5):
        return Layout("SCRFD", _scrfd_blob, _decode_scrfd, 0.5, 0.4)
    if channels == [1] * 6 + [4] * 3 + [10] * 3:
        return Layout("YuNet", _yunet_blob, _decode_yunet, 0.6, 0.3)
    if channels == [1, 2, 14]:
        return Layout("YuNet of 2022", _yunet_blob, _decode_priors, 0.6, 0.3)
    return None


def _scrfd_blob(pixels: np.ndarray) -> np.ndarray:
    return ((pixels.astype(np.float32) - 127.5) / 128).transpose(2, 0, 1)


def _yunet_blob(pixels: np.ndarray) -> np.ndarray:
    return pixels[:, :, ::-1].astype(np.float32).transpose(2, 0, 1)  # BGR


def _decode_scrfd(outputs: Sequence[np.ndarray], canvas: tuple[int, int]) -> Faces:
    """Distances from the corner of a cell, in strides; one or two anchors a cell."""
    boxes, landmarks, scores = [], [], []
    levels = zip(*(_by_size(outputs, channels) for channels in (1, 4, 10)))
    for level, (score, distance, points) in enumerate(levels):
        stride = 8 << level
        cells = _cells(canvas, stride)  # (cells, 2)
        corner = np.repeat(cells, len(score) // max(len(cells), 1), axis=0)
        boxes.append(np.hstack([corner - distance[:, :2], corner + distance[:, 2:]]) * stride)
        landmarks.append((corner[:, None] + points.reshape(-1, 5, 2)) * stride)
        scores.append(score[:, 0])
    return Faces(*map(np.concatenate, (boxes, landmarks, scores)))


def _decode_yunet(outputs: Sequence[np.ndarray], canvas: tuple[int, int]) -> Faces:
    """Centers and logarithms of sizes, in strides; the score is of two factors."""
    boxes, landmarks, scores = [], [], []
    factors = _by_size(outputs, 1)
    levels = zip(factors[::2], factors[1::2], _by_size(outputs, 4), _by_size(outputs, 10))
    for level, (one, other, box, points) in enumerate(levels):
        stride = 8 << level
        cells = _cells(canvas, stride)
        boxes.append(_box(cells + box[:, :2], _exp(box[:, 2:])) * stride)
        landmarks.append((cells[:, None] + points.reshape(-1, 5, 2)) * stride)
        scores.append(np.sqrt(one[:, 0].clip(0, 1) * other[:, 0].clip(0, 1)))
    return Faces(*map(np.concatenate, (boxes, landmarks, scores)))


def _decode_priors(outputs: Sequence[np.ndarray], canvas: tuple[int, int]) -> Faces:
    """The YuNet of 2021 and 2022: offsets from boxes of given sizes around the cells' centers."""
    places, confidences, overlaps = (_by_size(outputs, channels)[0] for channels in (14, 2, 1))
    centers, sizes = [], []
    for stride, lengths in _PRIORS.items():
        middle = (_cells(canvas, stride) + 0.5) * stride
        centers.append(np.repeat(middle, len(lengths), axis=0))
        sizes.append(np.tile(np.array(lengths, np.float64), len(middle)))
    center, size = np.concatenate(centers), np.concatenate(sizes)[:, None]  # (n, 2), (n, 1)
    box = _box(
        center + places[:, :2] * _VARIANCES[0] * size, size * _exp(places[:, 2:4] * _VARIANCES)
    )
    points = places[:, 4:].reshape(-1, 5, 2) * _VARIANCES[0] * size[:, None] + center[:, None]
    scores = np.sqrt(confidences[:, 1].clip(0, 1) * overlaps[:, 0].clip(0, 1))
    return Faces(box, points, scores)


def _by_size(outputs: Sequence[np.ndarray], channels: int) -> list[np.ndarray]:
    """Those of so many channels, the finest cells first."""
    chosen = [output for output in outputs if output.shape[1] == channels]
    return sorted(chosen, key=len, reverse=True)


def _cells(canvas: tuple[int, int], stride: int) -> np.ndarray:
    """(n, 2), column and row of each cell, row after row."""
    rows, columns = canvas[0] // stride, canvas[1] // stride
    place = np.arange(rows * columns)
    return np.stack([place % max(columns, 1), place // max(columns, 1)], axis=1).astype(np.float64)


def _exp(logarithms: np.ndarray) -> np.ndarray:
    """Of what is no face they may be anything."""
    return np.exp(logarithms.astype(np.float64).clip(-30, 30))


def _box(center: np.ndarray, size: np.ndarray) -> np.ndarray:
    return np.hstack([center - size / 2, center + size / 2])
