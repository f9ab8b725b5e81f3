"""What a graph does before a network and after it: pixels prepared, embeddings finished."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.saving.weight_file import WeightsError
from training.weights.onnx_import.graph import Graph, Node
from training.weights.onnx_import.walk import Walk

_CHANNELS, _WIDTH = 1, 3  # axes in NCHW
# What finishes embeddings: their lengths made 1, or those of an image and its mirror image added.
_FINISHING = {
    *("ReduceL2", "ReduceSumSquare", "LpNormalization", "Pow", "Sqrt", "Abs", "Clip", "Max"),
    *("Add", "Mul", "Div", "ReduceSum", "Sum", "Reshape", "Split", "Slice", "Gather"),
    *("Expand", "Squeeze", "Unsqueeze"),
}


@dataclass(frozen=True)
class Front:
    """What a graph does to images before its first convolution.

    Attributes:
        value: that the first convolution takes.
        layout: of the images, "nchw" or "nhwc".
        reversed: whether it reverses the order of the channels.
        scale, shift: (3,) float64, of the channels as the convolution takes them.
        mirrored: whether the mirror images go through the network, too.
    """

    value: str
    layout: str
    reversed: bool
    scale: np.ndarray
    shift: np.ndarray
    mirrored: bool


def read_front(graph: Graph, walk: Walk) -> Front:
    """Go from the images to the first convolution. Raises WeightsError for what does not fit."""
    value, swapped, mirrored = graph.images, False, False
    in_rows = graph.shape[1] != 3 and graph.shape[3] == 3
    layout, channels = ("nhwc", 3) if in_rows else ("nchw", _CHANNELS)
    scale, shift = np.ones(3), np.zeros(3)
    expected = "scales and shifts of pixels, Transpose to NCHW, or a convolution"
    while True:
        if joined := _with_mirror_images(graph, value):
            value, mirrored = joined, True
        node = walk.only_taker(value, at="conv1", expected=expected)
        if node.op == "Conv":
            return Front(value, layout, swapped, scale, shift, mirrored)
        if node.op == "Transpose" and [*node.attributes.get("perm", [])] == [0, 3, 1, 2]:
            layout, channels = "nhwc", _CHANNELS
        elif _reverses(graph, node, channels):
            swapped, scale, shift = not swapped, scale[::-1], shift[::-1]
        elif step := walk.scale_and_shift(node, value, 3, axes=4 if channels == _CHANNELS else 2):
            scale, shift = scale * step[0], shift * step[0] + step[1]
        else:
            walk.refuse(node, at="conv1", expected=expected)
        value = node.outputs[0]


def read_tail(graph: Graph, walk: Walk, value: str, wanted: str) -> tuple[str, bool]:
    """The name of the output that has the embeddings, and whether they are finished before.

    Args:
        value: what the network's last layer makes.
        wanted: the output's name, where the user says it.

    Raises WeightsError for what no finishing has in it, and where there are several outputs.
    """
    if graph.outputs.get(value) and wanted in ("", graph.outputs[value]):
        return graph.outputs[value], False
    made = {value}
    for node in graph.nodes:
        if made & {*node.inputs}:
            if node.op not in _FINISHING:
                expected = "L2 normalization or the sum with the mirror image's"
                walk.refuse(node, at="the end of the embeddings", expected=expected)
            made |= {*node.outputs}
    found = [name for one, name in graph.outputs.items() if one in made and wanted in ("", name)]
    if len(found) != 1:
        several = ", ".join(graph.outputs.values())
        raise WeightsError(
            f"{graph.path} has the outputs {several}: expected one of embeddings. Name it: "
            "tools/import_onnx.py --onnx-input output=NAME"
        )
    return found[0], True


def _with_mirror_images(graph: Graph, value: str) -> str:
    """What is made of images and their mirror images, one batch after the other; "" without."""
    takers = graph.takers(value)
    for mirror, joined in (takers, takers[::-1]) if len(takers) == 2 else ():
        both = {value, *mirror.outputs}
        if joined.op == "Concat" and {*joined.inputs} == both and _reverses(graph, mirror, _WIDTH):
            return joined.outputs[0] if joined.attributes.get("axis") == 0 else ""
    return ""


def _reverses(graph: Graph, node: Node, axis: int) -> bool:
    """Whether an operator reverses its input along an axis of four."""
    given = [graph.constants.get(name) for name in node.inputs[1:]]
    if any(one is None for one in given):
        return False
    if node.op == "Gather":
        at = node.attributes.get("axis", 0) % 4
        return at == axis and given[0].ravel().tolist() == [2, 1, 0]
    if node.op != "Slice" or len(given) != 4:
        return False
    starts, ends, axes, steps = (one.ravel().tolist() for one in given)
    whole = starts == steps == [-1] and all(end < -3 for end in ends)
    return whole and [at % 4 for at in axes] == [axis]
