"""SCRFD and YuNet, by networks of constants in their files' layouts; no public file was at hand."""

from pathlib import Path

import numpy as np
import pytest

from facestream import UserError
from pipeline.align import TEMPLATE
from pipeline.faces.boxes import Faces, without_overlaps
from pipeline.faces.detector import Detector, DetectorError
from pipeline.faces.layouts import layout_of
from tests.pipeline.faces import detectors
from tests.pipeline.faces.detectors import CANVAS, Face

pytest.importorskip("onnxruntime")

LEFT = Face((10, 20, 60, 90), TEMPLATE * 0.4 + [12, 25], 0.9)
RIGHT = Face((110, 30, 180, 120), TEMPLATE * 0.6 + [112, 40], 0.8, stride=32)
UNLIKELY = Face((70, 5, 100, 40), TEMPLATE * 0.2 + [70, 5], 0.3)
SECOND_BOX = Face((12, 22, 62, 94), TEMPLATE * 0.4 + [13, 26], 0.7, stride=8)  # LEFT again
PHOTO = np.zeros((*CANVAS, 3), np.uint8)


@pytest.mark.parametrize("layout", detectors.LAYOUTS)
def test_faces_are_found_where_the_network_says(layout, tmp_path):
    """The surest first; what is unlikely, and what covers another, is none."""
    outputs = detectors.LAYOUTS[layout]([RIGHT, LEFT, UNLIKELY, SECOND_BOX])
    found = Detector(detectors.write(tmp_path / "d.onnx", outputs))(PHOTO)
    assert len(found) == 2
    np.testing.assert_allclose(found.scores, [0.9, 0.8], rtol=1e-5)
    np.testing.assert_allclose(found.boxes, [LEFT.box, RIGHT.box], atol=1e-3)
    np.testing.assert_allclose(found.landmarks, [LEFT.points, RIGHT.points], atol=1e-3)


@pytest.mark.parametrize("shape", [(256, 384), (64, 96), (500, 100), (7, 300)])
def test_places_are_those_of_the_photo_whatever_its_size(shape, tmp_path):
    """It is scaled to the canvas, its top left corner there."""
    path = detectors.write(tmp_path / "d.onnx", detectors.scrfd([LEFT]))
    found = Detector(path)(np.zeros((*shape, 3), np.uint8))
    scale = min(CANVAS[0] / shape[0], CANVAS[1] / shape[1])
    sides = np.maximum(np.round(np.array(shape) * scale), 1)[::-1]
    back = np.array(shape)[::-1] / sides
    np.testing.assert_allclose(found.landmarks[0], LEFT.points * back, rtol=1e-4)


def test_one_anchor_five_strides_and_a_batch_axis(tmp_path):
    canvas = (256, 384)
    outputs = detectors.scrfd([LEFT], canvas, anchors=1, batch=True)
    for stride in (64, 128):
        cells = (canvas[0] // stride) * (canvas[1] // stride)
        for kind, channels in (("score", 1), ("bbox", 4), ("kps", 10)):
            outputs[f"{kind}_{stride}"] = np.zeros((1, cells, channels), np.float32)
    path = detectors.write(tmp_path / "d.onnx", outputs, sides=canvas)
    np.testing.assert_allclose(
        Detector(path)(np.zeros((*canvas, 3), np.uint8)).landmarks[0], LEFT.points, atol=1e-3
    )


def test_a_network_of_any_size_gets_640_pixels(tmp_path):
    outputs = detectors.yunet([LEFT], (640, 640))
    path = detectors.write(tmp_path / "d.onnx", outputs, sides=("height", "width"))
    found = Detector(path)(np.zeros((320, 320, 3), np.uint8))
    np.testing.assert_allclose(found.boxes[0], np.array(LEFT.box) / 2, atol=1e-3)


def test_what_the_networks_are_given():
    """SCRFD RGB from -1 to 1; YuNet BGR from 0 to 255."""
    pixels = np.zeros((2, 2, 3), np.uint8)
    pixels[..., 0] = 255  # red
    scrfd = layout_of([(8, c) for c in (1, 4, 10) for _ in range(3)])
    yunet = layout_of([(8, c) for c in (1, 1, 4, 10) for _ in range(3)])
    np.testing.assert_allclose(scrfd.blob(pixels)[:, 0, 0], np.array([127.5, -127.5, -127.5]) / 128)
    np.testing.assert_allclose(yunet.blob(pixels)[:, 0, 0], [0, 0, 255])


def test_faces_that_overlap_little_are_two():
    boxes = np.array([[0, 0, 10, 10], [8, 0, 18, 10], [1, 0, 11, 10.0]])
    faces = Faces(boxes, np.zeros((3, 5, 2)), np.array([0.6, 0.7, 0.9]))
    assert without_overlaps(faces, most=0.4).scores.tolist() == [0.9, 0.7]
    assert len(without_overlaps(faces.taken(np.zeros(3, bool)), most=0.4)) == 0


def without(outputs: dict, *names: str) -> dict:
    return {name: output for name, output in outputs.items() if not name.startswith(names)}


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (without(detectors.scrfd([]), "kps"), "has 6 outputs of shapes .*expected SCRFD with"),
        ({"embedding": np.zeros((1, 512), np.float32)}, "has 1 outputs of shapes"),
        ({"maps": np.zeros((1, 2, 8, 8), np.float32)}, "has 1 outputs of shapes"),
        (detectors.scrfd([], (64, 64)), "not as many cells"),
        (detectors.yunet([], (64, 64)), "not as many cells"),
        (detectors.older_yunet([], (64, 64)), "not as many cells"),
    ],
)
def test_other_networks_are_not_taken_for_detectors(outputs, message, tmp_path):
    with pytest.raises(DetectorError, match=message):
        Detector(detectors.write(tmp_path / "d.onnx", outputs))


def test_a_network_of_another_input(tmp_path):
    outputs = detectors.scrfd([])
    with pytest.raises(DetectorError, match="takes images of 5000×64"):
        Detector(detectors.write(tmp_path / "d.onnx", outputs, sides=(64, 5000)))
    with pytest.raises(DetectorError, match="expected images"):
        Detector(detectors.write(tmp_path / "d.onnx", outputs, sides=(64,)))


def test_nan_is_an_error_and_no_empty_photo(tmp_path):
    outputs = detectors.scrfd([LEFT])
    outputs["score_8"][3] = np.nan
    detector = Detector(detectors.write(tmp_path / "d.onnx", outputs))
    with pytest.raises(DetectorError, match="NaN or infinity"):
        detector(PHOTO)


@pytest.mark.parametrize("content", [b"", b"no network", b"\x08\x07" * 50])
def test_a_file_that_is_no_network(content, tmp_path: Path):
    path = tmp_path / "d.onnx"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"d\.onnx cannot be read"):
        Detector(path)


def test_weights_in_another_file_are_not_followed(tmp_path):
    """The name may be any file's of this machine."""
    import onnx

    path = detectors.write(tmp_path / "d.onnx", detectors.scrfd([LEFT]))
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="w", size_threshold=0)
    with pytest.raises(DetectorError, match="names another file for its weights"):
        Detector(path)
