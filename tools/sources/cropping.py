"""--landmarks and --detector: the options of every tool that takes photographs for crops."""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from facestream import UserError
from pipeline.align import SIZE
from pipeline.faces.crops import NO_FACE, SEVERAL, Crop, CropError, Cropper
from pipeline.faces.detector import Detector
from pipeline.faces.landmark_list import LandmarkList
from pipeline.faces.landmark_order import warning_of_order
from training.command import whole_number

_LARGEST = 1024  # pixels
_BAD_FIT = 18.0  # pixels: worse than a profile's
_TURNED = 60.0  # degrees: more than heads lean


@dataclass(frozen=True, kw_only=True)
class CropOptions:
    """What the options say; None where not given."""

    landmarks: Path | None = None
    detector: Path | None = None
    size: int | None = None
    no_face: str | None = None
    several: str | None = None


def add_crop_options(parser: argparse.ArgumentParser, *, sized: bool = True) -> None:
    """Let a tool take photographs: read its arguments with `take_crop_options`.

    Args:
        sized: whether the size of crops may be chosen.
    """
    group = parser.add_argument_group("photographs")
    found_by = group.add_mutually_exclusive_group()
    found_by.add_argument(
        "--landmarks",
        type=Path,
        metavar="CSV",
        help="crop photographs by these: lines `name,x1,y1,…,x5,y5`, left eye, right eye, nose, "
        "left and right corner of the mouth, as they lie in the picture",
    )
    found_by.add_argument(
        "--detector", type=Path, metavar="FILE.onnx", help="find them by your own SCRFD or YuNet"
    )
    if sized:
        group.add_argument(
            "--size", type=whole_number(16, _LARGEST), help=f"pixels of a crop (default {SIZE})"
        )
    group.add_argument(
        "--no-face", choices=NO_FACE, help="what to do with a photo without a face (default skip)"
    )
    group.add_argument(
        "--several", choices=SEVERAL, help="which of several faces to take (default largest)"
    )


def take_crop_options(arguments: dict[str, Any]) -> CropOptions:
    """These options out of a parser's arguments; the others are left in them."""
    names = CropOptions.__dataclass_fields__
    return CropOptions(**{name: arguments.pop(name, None) for name in names})


def open_cropper(options: CropOptions, *, folder: Path) -> Cropper | None:
    """What makes the crops; None where the user has crops already.

    Args:
        folder: where the names of a list of landmarks begin.

    Raises:
        UserError: a list or a detector that cannot be used, and options without either.
    """
    if options.landmarks is None and options.detector is None:
        for name in ("size", "no_face", "several"):
            if getattr(options, name) is not None:
                raise UserError(
                    f"--{name.replace('_', '-')} goes with --landmarks or --detector: leave it out"
                )
        return None
    found_by: LandmarkList | Detector
    if options.landmarks is not None:
        if options.several is not None:
            raise UserError("--several goes with --detector: a list has one face a photo")
        found_by = LandmarkList(options.landmarks, folder=folder)
    else:
        assert options.detector is not None
        found_by = Detector(options.detector)
    return Cropper(
        found_by=found_by,
        size=options.size or SIZE,
        no_face=options.no_face or "skip",
        several=options.several or "largest",
    )


def about_faces(cropper: Cropper) -> list[str]:
    """Who finds the faces, and what looks wrong before any is cropped."""
    found_by = cropper.found_by
    if isinstance(found_by, Detector):
        return [f"detector      {found_by.path}, {found_by.name}"]
    lines = [f"landmarks     {len(found_by)} in {found_by.path}"]
    if warning := warning_of_order(found_by.points):
        lines.append(f"warning       {warning}")
    return lines


class CropCounts:
    """What became of photographs: counted, reported at the end."""

    def __init__(self) -> None:
        self.cropped = 0
        self._errors: list[float] = []
        self._turned = 0
        self._worst = (0.0, "")
        self._faces: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def add(self, name: str, crop: Crop | CropError) -> None:
        """Of the photo of this name."""
        if isinstance(crop, CropError):
            self._count(f"passed over, {crop}", name)
            return
        self.cropped += 1
        if crop.landmarks is None:
            self._count("no face, center taken", name)
            return
        if crop.faces > 1:
            self._count("several faces, one taken", name)
        self._errors.append(crop.error)
        self._turned += abs(crop.roll) > _TURNED
        self._worst = max(self._worst, (crop.error, name))

    def lines(self) -> list[str]:
        """For the console."""
        lines = [
            f"{what}: {count}, first {self._first[what]}"
            for what, count in self._faces.most_common()
        ]
        if self._errors:
            error, name = self._worst
            lines.append(
                f"fit error     {np.median(self._errors):.1f} pixels (median), at most "
                f"{error:.1f} ({name})"
            )
            bad = sum(error > _BAD_FIT for error in self._errors)
            if bad:
                lines.append(
                    f"warning       {bad} crops have an error above {_BAD_FIT:.0f} pixels, which "
                    "no face has: look at them"
                )
        if self._turned:
            lines.append(
                f"warning       {self._turned} faces lie turned by more than {_TURNED:.0f} "
                "degrees: landmarks are expected in the photo turned upright by its EXIF note"
            )
        return lines

    def _count(self, what: str, name: str) -> None:
        self._faces[what] += 1
        self._first.setdefault(what, name)
