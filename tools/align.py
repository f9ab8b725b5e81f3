"""Crop photographs by five landmarks:  python tools/align.py IMAGES -o OUT --landmarks CSV

IMAGES is a folder of photographs, in folders or not; OUT gets a crop of each under the same name,
112 x 112 pixels with eyes, nose and mouth where ArcFace's template has them. The landmarks are
those of a list, or those that your own detector finds (--detector FILE.onnx, SCRFD or YuNet). A
contact sheet beside OUT shows the first crops, with the landmarks and how well they fit, in pixels.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from PIL import Image, ImageDraw
from rich.progress import track

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from facestream import UserError
from pipeline.align import fit
from pipeline.faces.crops import Crop, Cropper, crops_from
from pipeline.faces.landmark_list import LandmarkList
from pipeline.named_path import as_text, check_path
from pipeline.photos import CONVERTED, SUFFIXES, encode
from tools.sources.cropping import (
    CropCounts,
    about_faces,
    add_crop_options,
    open_cropper,
    take_crop_options,
)
from training.command import command

_COLUMNS, _ROWS = 8, 6  # of the contact sheet
_BORDER = 4  # pixels
_TEXT = 14  # pixels
_DOTS = ("#ff4040", "#40ff40", "#4080ff", "#ffd040", "#ff40ff")  # in the landmarks' order
_JPEG = (".jpg", ".jpeg")
_SHOWN = 3


def photos_in(folder: Path) -> list[Path]:
    """Its images at any depth, by name; what is hidden is left out, links to folders too."""
    found = []
    for inside, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            Path(inside) / name
            for name in sorted(files)
            if not name.startswith(".")
            and os.path.splitext(name)[1].lower() in (*SUFFIXES, *CONVERTED)
        ]
    return found


def align_folder(images: Path, output: Path, cropper: Cropper) -> CropCounts:
    """Crop the photographs of a folder into another, and draw the contact sheet.

    Raises:
        UserError: no photograph, a list that names none of them, an `output` that holds something,
            and as the cropper does.
    """
    check_path(images, called=str(images), expected="a folder of images", file=False, folder=True)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} is not an empty folder: name another one")
    photos = photos_in(images)
    if not photos:
        raise UserError(f"{images} holds no images: expected {', '.join(SUFFIXES)} or the like")
    if isinstance(cropper.found_by, LandmarkList):
        _say_what_is_missing(cropper.found_by, photos)
    counts, shown = CropCounts(), []
    unseen = not sys.stdout.isatty()  # where a bar would leave an empty line
    crops = crops_from(photos, cropper)
    for photo, crop in track(crops, "crop", total=len(photos), transient=True, disable=unseen):
        name = photo.relative_to(images)
        counts.add(as_text(str(name)), crop)
        if not isinstance(crop, Crop):
            continue
        if photo.suffix.lower() not in (*_JPEG, ".png"):
            name = name.with_name(f"{name.name}.png")
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        jpeg = name.suffix.lower() in _JPEG
        (output / name).write_bytes(encode(crop.pixels, jpeg=jpeg))
        if len(shown) < _COLUMNS * _ROWS:
            shown.append(crop)
    if shown:
        contact_sheet(shown).save(sheet_of(output))
    return counts


def sheet_of(output: Path) -> Path:
    """Beside the crops, not among them: whoever reads that folder reads faces."""
    return output.with_name(f"{output.name}_sheet.png")


def contact_sheet(crops: list[Crop]) -> Image.Image:
    """Crops in rows, the landmarks on them in their order's colors, the fit's error below."""
    size = len(crops[0].pixels)
    width, height = size + 2 * _BORDER, size + 2 * _BORDER + _TEXT
    columns = min(_COLUMNS, len(crops))
    sheet = Image.new("RGB", (columns * width, -(-len(crops) // columns) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for place, crop in enumerate(crops):
        left, top = place % columns * width + _BORDER, place // columns * height + _BORDER
        sheet.paste(Image.fromarray(crop.pixels), (left, top))
        text = "center"
        if crop.landmarks is not None:
            matrix = fit(crop.landmarks, size=size).matrix
            for (x, y), color in zip(crop.landmarks @ matrix[:, :2].T + matrix[:, 2], _DOTS):
                where = (left + x - 2, top + y - 2, left + x + 2, top + y + 2)
                draw.ellipse(where, fill=color, outline="black")
            text = f"{crop.error:.1f}"
        draw.text((left, top + size), text, fill="black")
    return sheet


def _say_what_is_missing(landmarks: LandmarkList, photos: list[Path]) -> None:
    missing = landmarks.without_image(photos)
    shown = ", ".join(missing[:_SHOWN]) + (", …" if len(missing) > _SHOWN else "")
    if len(missing) == len(landmarks):
        raise UserError(
            f"{landmarks.path}: none of its {len(missing)} images is there: {shown}. The folder "
            f"holds {as_text(str(photos[0]))}, …: expected names as they are inside that folder"
        )
    if missing:
        print(f"missing       {len(missing)} images of the list: {shown}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path, help="folder of photographs")
    parser.add_argument("-o", "--output", type=Path, required=True, help="a new or empty folder")
    add_crop_options(parser)
    arguments = vars(parser.parse_args())
    with command("align"):
        options = take_crop_options(arguments)
        images, output = arguments["images"], arguments["output"]
        cropper = open_cropper(options, folder=images)
        if cropper is None:
            raise UserError(
                "how are the faces found? Give their landmarks (--landmarks CSV) or a detector "
                "(--detector FILE.onnx)"
            )
        for line in about_faces(cropper):
            print(line)
        counts = align_folder(images, output, cropper)
        for line in counts.lines():
            print(line)
        if not counts.cropped:
            raise UserError(f"of the photographs in {images} none could be cropped")
    print(
        f"cropped {counts.cropped} photographs into {output}, {cropper.size} x {cropper.size} "
        f"pixels; look at {sheet_of(output)}"
    )


if __name__ == "__main__":
    main()
