"""The one way from a photograph to the crop that networks take."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from facestream import UserError
from pipeline.ahead import map_ahead
from pipeline.align import SIZE, LandmarkError, align, fit
from pipeline.faces.detector import Detector
from pipeline.faces.landmark_list import LandmarkList
from pipeline.photos import PhotoError, photo_pixels, read_image

NO_FACE = ("skip", "error", "center")
SEVERAL = ("largest", "central", "skip")


class CropError(UserError):
    """A photo of which no crop is made: the reason, in a few words that many photos share."""


@dataclass(frozen=True)
class Crop:
    """A face, aligned.

    Attributes:
        pixels: (size, size, 3) uint8 RGB.
        landmarks: (5, 2) in pixels of the photo turned upright; None for the middle of a photo.
        error: the fit's in pixels, see `pipeline.align.fit`; NaN where there are no landmarks.
        roll: by how many degrees the face lies turned in the photo; likewise.
        faces: how many were found in the photo.
    """

    pixels: np.ndarray
    landmarks: np.ndarray | None
    error: float
    roll: float
    faces: int


@dataclass(frozen=True, kw_only=True)
class Cropper:
    """Makes crops of photographs; threads may share it.

    Attributes:
        found_by: who knows where the faces are.
        size: of the crops, in pixels.
        no_face: where there is none: "skip" the photo, end in an "error", or take the largest
            square in its "center".
        several: where there are more: take the "largest", the one nearest the middle ("central"),
            or "skip" the photo.
    """

    found_by: LandmarkList | Detector
    size: int = SIZE
    no_face: str = "skip"
    several: str = "largest"

    def __post_init__(self) -> None:
        assert self.no_face in NO_FACE, self.no_face
        assert self.several in SEVERAL, self.several

    def __call__(self, pixels: np.ndarray, name: str | Path) -> Crop:
        """The crop of a photo.

        Args:
            pixels: (H, W, 3) uint8 RGB, upright.
            name: its path, by which a list of landmarks knows it.

        Raises:
            CropError: a photo to pass over.
            UserError: what ends the work: a photo without a face where that is an error, a list
                that is ambiguous, a detector that is damaged.
        """
        landmarks, faces = self._landmarks(pixels, name)
        if landmarks is None:
            if self.no_face == "error":
                raise UserError(
                    f"{name}: no face is found in it. Remove it, or choose --no-face skip, or "
                    "--no-face center, which takes the middle of the photo"
                )
            if self.no_face == "skip":
                raise CropError("no face")
            return Crop(_middle(pixels, self.size), None, math.nan, math.nan, faces=0)
        height, width = pixels.shape[:2]
        x, y = landmarks.mean(axis=0)
        if not (0 <= x < width and 0 <= y < height):
            raise CropError("landmarks outside the photo")
        try:
            crop, found = align(pixels, landmarks, size=self.size), fit(landmarks)
        except LandmarkError as error:
            raise CropError(f"landmarks of no face ({error})") from error
        return Crop(crop, landmarks, float(found.error), float(found.roll), faces)

    def _landmarks(self, pixels: np.ndarray, name: str | Path) -> tuple[np.ndarray | None, int]:
        """Of the chosen face, and the number of faces."""
        if isinstance(self.found_by, LandmarkList):
            landmarks = self.found_by.of(name)
            return landmarks, 0 if landmarks is None else 1
        found = self.found_by(pixels)
        if len(found) < 2:
            return (found.landmarks[0] if len(found) else None), len(found)
        if self.several == "skip":
            raise CropError("several faces")
        corner, opposite = found.boxes[:, :2], found.boxes[:, 2:]
        if self.several == "largest":
            place = int((opposite - corner).clip(0).prod(axis=1).argmax())
        else:
            middle = np.array(pixels.shape[1::-1]) / 2
            place = int((((corner + opposite) / 2 - middle) ** 2).sum(axis=1).argmin())
        return found.landmarks[place], len(found)


def crops_from(photos: Iterable[Path], cropper: Cropper) -> Iterator[tuple[Path, Crop | CropError]]:
    """The crop of each photo, in order, read and made on all cores; or why there is none.

    Raises UserError as the cropper does, OSError for a photo that cannot be read.
    """

    def crop(photo: Path) -> tuple[Path, Crop | CropError]:
        encoded, reason = read_image(photo)
        try:
            if reason:
                raise CropError(reason)
            return photo, cropper(decoded(encoded), photo)
        except CropError as error:
            return photo, error

    yield from map_ahead(crop, photos)


def decoded(encoded: bytes) -> np.ndarray:
    """A photo's (H, W, 3) uint8 RGB; CropError for what is none."""
    try:
        return photo_pixels(encoded)
    except PhotoError as error:
        raise CropError(str(error)) from error


def _middle(pixels: np.ndarray, size: int) -> np.ndarray:
    height, width = pixels.shape[:2]
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    square = Image.fromarray(pixels[top : top + side, left : left + side])
    return np.asarray(square.resize((size, size), Image.Resampling.BILINEAR))
