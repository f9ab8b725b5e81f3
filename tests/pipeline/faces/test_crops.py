"""From a photograph to a crop, by a list and by a detector."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facestream import UserError
from pipeline.align import TEMPLATE, align
from pipeline.faces.boxes import Faces
from pipeline.faces.crops import CropError, Cropper, crops_from
from pipeline.faces.landmark_list import LandmarkList

PHOTO = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)


class Found:
    """Stands in for a detector."""

    def __init__(self, *faces: tuple[float, float, float]) -> None:
        """faces: left, top and side of each."""
        self.faces = faces

    def __call__(self, pixels: np.ndarray) -> Faces:
        boxes = [(x, y, x + side, y + side) for x, y, side in self.faces]
        points = [TEMPLATE * side / 112 + [x, y] for x, y, side in self.faces]
        scores = np.linspace(0.9, 0.6, len(self.faces))
        return Faces(np.reshape(boxes, (-1, 4)), np.reshape(points, (-1, 5, 2)), scores)


LARGE, CENTRAL = (10, 20, 150), (170, 120, 60)


@pytest.mark.parametrize(("several", "chosen"), [("largest", LARGE), ("central", CENTRAL)])
def test_which_of_several_faces(several, chosen):
    crop = Cropper(found_by=Found(CENTRAL, LARGE), several=several)(PHOTO, "a.jpg")
    points = TEMPLATE * chosen[2] / 112 + chosen[:2]
    np.testing.assert_allclose(crop.landmarks, points)
    np.testing.assert_array_equal(crop.pixels, align(PHOTO, points))
    assert crop.faces == 2
    assert crop.error < 1e-6


def test_several_faces_and_none_are_passed_over_if_wished():
    with pytest.raises(CropError, match="several faces"):
        Cropper(found_by=Found(LARGE, CENTRAL), several="skip")(PHOTO, "a.jpg")
    with pytest.raises(CropError, match="no face"):
        Cropper(found_by=Found())(PHOTO, "a.jpg")


def test_no_face_may_be_an_error_that_names_the_photo():
    with pytest.raises(UserError, match=r"holiday/a\.jpg: no face is found") as error:
        Cropper(found_by=Found(), no_face="error")(PHOTO, "holiday/a.jpg")
    assert not isinstance(error.value, CropError)


def test_without_a_face_the_middle_may_be_taken():
    pixels = np.zeros((100, 300, 3), np.uint8)
    pixels[:, 100:200] = 200
    crop = Cropper(found_by=Found(), no_face="center", size=64)(pixels, "a.jpg")
    assert crop.pixels.shape == (64, 64, 3)
    assert (crop.pixels == 200).all()
    assert crop.landmarks is None
    assert np.isnan(crop.error)


def test_landmarks_beside_the_photo_are_none():
    with pytest.raises(CropError, match="landmarks outside the photo"):
        Cropper(found_by=Found((500, 10, 50)))(PHOTO, "a.jpg")
    with pytest.raises(CropError, match="landmarks of no face"):
        Cropper(found_by=Found((50, 10, 0)))(PHOTO, "a.jpg")


def test_photos_of_a_folder_by_a_list(tmp_path: Path):
    """In order; landmarks are of the photo turned upright; each fault with its reason."""
    upright = Image.fromarray(PHOTO)
    note = Image.Exif()
    note[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=note)
    upright.save(tmp_path / "plain.png")
    upright.save(tmp_path / "unlisted.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "plain.png").read_bytes()[:9000])
    (tmp_path / "note.txt").write_text("no photo")
    points = TEMPLATE + 80
    names = ("turned.png", "plain.png", "cut.png")
    rows = [",".join([name, *map(str, points.ravel())]) for name in names]
    (tmp_path / "marks.csv").write_text("\n".join(rows))
    marks = LandmarkList(tmp_path / "marks.csv", folder=tmp_path)
    photos = [tmp_path / name for name in (*names, "unlisted.png", "note.txt", "none.jpg")]
    made = list(crops_from(photos, Cropper(found_by=marks)))
    assert [photo for photo, _ in made] == photos
    turned, plain, *faults = (crop for _, crop in made)
    np.testing.assert_array_equal(turned.pixels, align(PHOTO, points))
    np.testing.assert_array_equal(plain.pixels, turned.pixels)
    assert "cut off" in str(faults[0])
    assert [str(fault) for fault in faults[1:]] == ["no face", "no image (.txt)", "missing file"]
