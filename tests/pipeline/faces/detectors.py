"""Detectors that find what they are given: networks of constants, in the public files' layouts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CANVAS = (128, 192)  # height, width
_PRIORS = {8: (10, 16, 24), 16: (32, 48), 32: (64, 96), 64: (128, 192, 256)}


class Face(NamedTuple):
    """A face on the canvas, in pixels."""

    box: tuple[float, float, float, float]
    points: np.ndarray  # (5, 2)
    score: float
    stride: int = 16


def scrfd(faces: list[Face], canvas=CANVAS, *, anchors: int = 2, batch: bool = False) -> dict:
    """score, bbox and kps at strides 8, 16 and 32: distances from a cell's corner, in strides."""
    outputs: dict[str, np.ndarray] = {}
    for kind, channels in (("score", 1), ("bbox", 4), ("kps", 10)):
        for stride in (8, 16, 32):
            cells = (canvas[0] // stride) * (canvas[1] // stride) * anchors
            outputs[f"{kind}_{stride}"] = np.zeros((cells, channels), np.float32)
    for face in faces:
        row, column = _cell(face)
        place = (row * (canvas[1] // face.stride) + column) * anchors + anchors - 1
        x, y = column * face.stride, row * face.stride
        left, top, right, bottom = face.box
        outputs[f"score_{face.stride}"][place] = face.score
        outputs[f"bbox_{face.stride}"][place] = (
            np.array([x - left, y - top, right - x, bottom - y]) / face.stride
        )
        outputs[f"kps_{face.stride}"][place] = ((face.points - [x, y]) / face.stride).ravel()
    return {name: output[None] if batch else output for name, output in outputs.items()}


def yunet(faces: list[Face], canvas=CANVAS) -> dict:
    """cls, obj, bbox and kps at strides 8, 16 and 32: centers and logarithms of sizes."""
    outputs: dict[str, np.ndarray] = {}
    for kind, channels in (("cls", 1), ("obj", 1), ("bbox", 4), ("kps", 10)):
        for stride in (8, 16, 32):
            cells = (canvas[0] // stride) * (canvas[1] // stride)
            outputs[f"{kind}_{stride}"] = np.zeros((1, cells, channels), np.float32)
    for face in faces:
        row, column = _cell(face)
        stride, place = face.stride, row * (canvas[1] // face.stride) + column
        left, top, right, bottom = face.box
        outputs[f"cls_{stride}"][0, place] = face.score
        outputs[f"obj_{stride}"][0, place] = face.score
        outputs[f"bbox_{stride}"][0, place] = [
            (left + right) / 2 / stride - column,
            (top + bottom) / 2 / stride - row,
            math.log((right - left) / stride),
            math.log((bottom - top) / stride),
        ]
        outputs[f"kps_{stride}"][0, place] = (face.points / stride - [column, row]).ravel()
    return outputs


def older_yunet(faces: list[Face], canvas=CANVAS) -> dict:
    """loc, conf and iou over boxes of given sizes, as in the files of 2021 and 2022."""
    priors = [
        ((column + 0.5) * stride, (row + 0.5) * stride, length, stride)
        for stride, lengths in _PRIORS.items()
        for row in range(canvas[0] // stride)
        for column in range(canvas[1] // stride)
        for length in lengths
    ]
    outputs = {
        name: np.zeros((len(priors), channels), np.float32)
        for name, channels in (("loc", 14), ("conf", 2), ("iou", 1))
    }
    for face in faces:
        row, column = _cell(face)
        center = ((column + 0.5) * face.stride, (row + 0.5) * face.stride)
        place = next(
            i for i, (x, y, _, s) in enumerate(priors) if (x, y) == center and s == face.stride
        )
        length = priors[place][2]
        left, top, right, bottom = face.box
        middle = ((left + right) / 2, (top + bottom) / 2)
        outputs["conf"][place] = [1 - face.score, face.score]
        outputs["iou"][place] = face.score
        outputs["loc"][place] = [
            *(np.subtract(middle, center) / 0.1 / length),
            math.log((right - left) / length) / 0.1,
            math.log((bottom - top) / length) / 0.2,
            *((face.points - center) / 0.1 / length).ravel(),
        ]
    return outputs


LAYOUTS = {"scrfd": scrfd, "yunet": yunet, "older_yunet": older_yunet}


def write(path: Path, outputs: dict[str, np.ndarray], *, sides: tuple = CANVAS) -> Path:
    """A network of one image (1, 3, height, width) that makes these outputs of every one."""
    nodes, kept = [], []
    for name, output in outputs.items():
        kept.append(numpy_helper.from_array(output, f"{name}_value"))
        # The input has a part in each, so that it is one of the network.
        nodes.append(helper.make_node("Add", [f"{name}_value", "nothing"], [name]))
    kept.append(numpy_helper.from_array(np.zeros(1, np.float32), "zero"))
    nodes = [
        helper.make_node("ReduceMax", ["input.1"], ["brightest"], keepdims=0),
        helper.make_node("Mul", ["brightest", "zero"], ["nothing"]),
        *nodes,
    ]
    graph = helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info("input.1", TensorProto.FLOAT, [1, 3, *sides])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, output.shape)
            for name, output in outputs.items()
        ],
        kept,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.save(model, path)
    return path


def _cell(face: Face) -> tuple[int, int]:
    """Row and column of the cell of its box's middle."""
    left, top, right, bottom = face.box
    return int((top + bottom) / 2 // face.stride), int((left + right) / 2 // face.stride)
