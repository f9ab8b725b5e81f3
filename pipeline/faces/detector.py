"""A face detector of the user's, an .onnx file of SCRFD or YuNet, run by onnxruntime on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from facestream import UserError
from pipeline.faces.boxes import Faces, without_overlaps
from pipeline.faces.layouts import layout_of
from pipeline.named_path import check_path

_SIDE = 640  # pixels, of the canvas of a network that takes any size
_LARGEST_SIDE = 4096
_MOST_BYTES = 2**30
# How a protobuf begins the name of another file that holds weights.
_ELSEWHERE = b"\x0a\x08location"
_EXPECTED = (
    "expected SCRFD with landmarks (three times three outputs, of 1, 4 and 10 channels; of the "
    "public files those with `kps` in their names, and det_10g.onnx, det_500m.onnx) or YuNet "
    "(cls, obj, bbox and kps at strides 8, 16 and 32)"
)


class DetectorError(UserError):
    """A file that is no detector that can be run here: says why and how to mend it."""


class Detector:
    """Finds faces and their five landmarks in photographs; threads may share it.

    Args:
        path: the .onnx file, recognized by its outputs.

    Raises:
        PathError: a file that cannot be opened.
        DetectorError: onnxruntime is not installed, or the file is none of the known detectors.
    """

    def __init__(self, path: str | Path) -> None:
        check_path(path, called=str(path), expected="a face detector, an .onnx file")
        self.path = Path(path)
        self._session = _open(self.path)
        node = self._session.get_inputs()[0]
        self._input = node.name
        self._canvas = _canvas_of(self.path, node.shape)  # (height, width)
        probe = self._run(np.zeros((3, *self._canvas), np.float32))
        layout = layout_of([output.shape for output in probe])
        if layout is None:
            raise DetectorError(f"{path} {_outputs_in_words(probe)}, {_EXPECTED}")
        self._layout = layout
        self.name = layout.name
        self._decode(probe)  # refuses other numbers of cells

    def __call__(self, pixels: np.ndarray) -> Faces:
        """The faces of (H, W, 3) uint8 RGB, the surest first.

        Raises DetectorError where the network makes NaN of the image.
        """
        height, width = pixels.shape[:2]
        scale = min(self._canvas[0] / height, self._canvas[1] / width)
        rows, columns = (
            max(1, min(side, round(length * scale)))
            for side, length in zip(self._canvas, (height, width))
        )
        canvas = np.zeros((*self._canvas, 3), np.uint8)
        small = Image.fromarray(pixels).resize((columns, rows), Image.Resampling.BILINEAR)
        canvas[:rows, :columns] = np.asarray(small)
        found = self._decode(self._run(self._layout.blob(canvas)))
        if not np.isfinite(found.scores).all():
            raise DetectorError(f"{self.path} makes NaN or infinity of an image: it is damaged")
        found = without_overlaps(
            found.taken(found.scores >= self._layout.surest), most=self._layout.overlap
        )
        back = np.array([width / columns, height / rows])
        return Faces(found.boxes * np.tile(back, 2), found.landmarks * back, found.scores)

    def _decode(self, outputs: list[np.ndarray]) -> Faces:
        try:
            return self._layout.decode(outputs, self._canvas)
        except ValueError as error:  # numpy's, of shapes that do not fit one another
            raise DetectorError(
                f"{self.path} has the outputs of {self._layout.name}, but not as many cells as an "
                f"image of {self._canvas[1]}×{self._canvas[0]} pixels has at strides 8, 16, 32 …"
            ) from error

    def _run(self, blob: np.ndarray) -> list[np.ndarray]:
        """The outputs, (n, channels) each, of an image (3, H, W) float32."""
        try:
            outputs = self._session.run(None, {self._input: np.ascontiguousarray(blob)[None]})
        except Exception as error:  # onnxruntime's errors have no base of their own
            raise DetectorError(f"{self.path} cannot be run: {_first_line(error)}") from error
        arrays = [np.asarray(output) for output in outputs]
        return [array[0] if array.ndim == 3 and len(array) == 1 else array for array in arrays]


def _open(path: Path) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise DetectorError(
            f"{path}: onnxruntime is not installed, `pip install onnxruntime`; or find the faces "
            "elsewhere and give their landmarks (--landmarks)"
        ) from error
    if path.stat().st_size > _MOST_BYTES:
        raise DetectorError(f"{path} is larger than 1 GB: {_EXPECTED}")
    content = path.read_bytes()
    if _ELSEWHERE in content:
        # onnxruntime of some versions would read whatever file is named there.
        raise DetectorError(f"{path} names another file for its weights: save it as one file")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # images are shared out over threads
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no base of their own
        raise DetectorError(f"{path} cannot be read: {_first_line(error)}. {_EXPECTED}") from error


def _canvas_of(path: Path, shape: list[Any]) -> tuple[int, int]:
    """(height, width) of what the network takes."""
    if len(shape) != 4 or (isinstance(shape[1], int) and shape[1] != 3):
        raise DetectorError(f"{path} takes {shape}, expected images (1, 3, height, width)")
    height, width = (side if isinstance(side, int) and side > 0 else _SIDE for side in shape[2:])
    if max(height, width) > _LARGEST_SIDE:
        raise DetectorError(
            f"{path} takes images of {width}×{height} pixels, expected up to {_LARGEST_SIDE} a "
            "side: export it for 640×640"
        )
    return height, width


def _outputs_in_words(outputs: list[np.ndarray]) -> str:
    shapes = [str(output.shape) for output in outputs[:12]]
    more = ", …" if len(outputs) > len(shapes) else ""
    return f"has {len(outputs)} outputs of shapes {', '.join(shapes)}{more}"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
