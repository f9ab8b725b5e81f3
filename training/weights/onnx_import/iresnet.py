"""An IResNet along a graph: how many blocks its stages have, and its weights."""

from __future__ import annotations

import numpy as np

from models.iresnet import STAGES
from training.weights.onnx_import.graph import Node
from training.weights.onnx_import.walk import Walk, conv_norm_prelu


def take_iresnet(walk: Walk, value: str) -> str:
    """Take the weights of any IResNet without squeeze and excitation or attention.

    Args:
        value: normalized images.

    Returns:
        The value that is the embeddings. Raises WeightsError as `Walk` does.
    """
    value, channels = conv_norm_prelu(
        walk, value, ("conv1", "bn1", "prelu"), kernel=3, stride=1, inputs=3
    )
    stage, number = 0, 0
    while len(takers := walk.takers(value)) == 2:
        name = f"{STAGES[max(stage - 1, 0)]}.{number}"
        shortcut, main = _shortcut_and_main(walk, takers, name)
        if shortcut.op == "Conv":  # with which a stage begins
            if stage == len(STAGES):
                walk.refuse(shortcut, at="bn2", expected="the end after four stages")
            stage, number = stage + 1, 0
        elif stage == 0:
            walk.refuse(shortcut, at="layer1.0.downsample.0", expected="a convolution")
        name = f"{STAGES[stage - 1]}.{number}"
        value, channels = _take_block(walk, value, name, shortcut, main, channels)
        number += 1
    value = walk.norm(value, "bn2", channels=channels)
    value = walk.flatten(value, at="fc")
    value, bias = walk.linear(value, "fc")
    walk.tensors["fc.bias"] = bias.astype(np.float32)
    return walk.norm(value, "features", channels=len(bias), axes=2)


def _shortcut_and_main(walk: Walk, takers: list[Node], name: str) -> tuple[Node, Node]:
    """Which of two operators is the shortcut: the addition itself, or a 1x1 convolution."""
    for shortcut, main in (takers, takers[::-1]):
        if shortcut.op == "Add" or _is_pointwise(walk, shortcut, name):
            return shortcut, main
    return walk.refuse(takers[1], at=f"{name}.downsample.0", expected="a 1x1 convolution, or Add")


def _is_pointwise(walk: Walk, node: Node, name: str) -> bool:
    if node.op != "Conv":
        return False
    return walk.constant(node, 1, at=f"{name}.downsample.0").shape[2:] == (1, 1)


def _take_block(
    walk: Walk, value: str, name: str, shortcut: Node, main: Node, channels: int
) -> tuple[str, int]:
    """Two convolutions, added to what goes past them. Returns the sum and its channels."""
    added, stride = value, 1
    if shortcut.op == "Conv":
        stride = 2
        added, bias = walk.conv(
            *(value, f"{name}.downsample.0"),
            kernel=1,
            stride=stride,
            inputs=channels,
            first=shortcut,
        )
        added = walk.norm(added, f"{name}.downsample.1", channels=len(bias), bias=bias)
    inner = walk.norm(value, f"{name}.bn1", channels=channels, first=main)
    inner, channels = conv_norm_prelu(
        *(walk, inner, [f"{name}.{part}" for part in ("conv1", "bn2", "prelu")]),
        kernel=3,
        stride=1,
        inputs=channels,
        first=main if inner == value else None,  # nothing is left of that BatchNorm
    )
    inner, bias = walk.conv(inner, f"{name}.conv2", kernel=3, stride=stride, inputs=channels)
    inner = walk.norm(inner, f"{name}.bn3", channels=len(bias), bias=bias)
    expected = f"Add of {name} and its shortcut"
    node = walk.only_taker(inner, at=name, expected=expected)
    if node.op != "Add" or {*node.inputs} != {inner, added}:
        walk.refuse(node, at=name, expected=expected)
    return node.outputs[0], len(bias)
