"""A MobileFaceNet along a graph: how many blocks its stages have, and its weights."""

from __future__ import annotations

from training.weights.onnx_import.graph import Node
from training.weights.onnx_import.walk import Walk, conv_norm_prelu

_STAGES = (3, 5, 7)  # places of stages among its layers; before each is a block that halves the map


def take_mobilefacenet(walk: Walk, value: str) -> str:
    """Take the weights of a MobileFaceNet with any number of blocks.

    Args:
        value: normalized images.

    Returns:
        The value that is the embeddings. Raises WeightsError as `Walk` does.
    """
    value, channels = _conv(walk, value, "layers.0", kernel=3, stride=2, inputs=3)
    if len(walk.takers(value)) == 2:
        value = _stage(walk, value, "layers.1", channels)
    else:
        value, channels = _conv(walk, value, "layers.1", kernel=3, inputs=channels, groups=None)
    for stage in _STAGES:
        value, channels = _bottleneck(walk, value, f"layers.{stage - 1}", channels, stride=2)
        value = _stage(walk, value, f"layers.{stage}", channels)
    value, channels = _conv(walk, value, "conv_sep", kernel=1, inputs=channels)
    whole = "features.layers.0.layers"
    value, bias = walk.conv(
        *(value, f"{whole}.0"),
        kernel=None,
        stride=1,
        inputs=channels,
        padded=False,
        groups=channels,
    )
    value = walk.norm(value, f"{whole}.1", channels=channels, bias=bias)
    value = walk.flatten(value, at="features.layers.2")
    value, bias = walk.linear(value, "features.layers.2")
    return walk.norm(value, "features.layers.3", channels=len(bias), axes=2, bias=bias)


def _stage(walk: Walk, value: str, name: str, channels: int) -> str:
    """Blocks that are added to what goes past them."""
    number = 0
    while len(takers := walk.takers(value)) == 2:
        main = takers[0] if takers[1].op == "Add" else takers[1]
        block = f"{name}.layers.{number}"
        inner, _ = _bottleneck(walk, value, block, channels, stride=1, first=main)
        expected = f"Add of {block} and what goes past it"
        node = walk.only_taker(inner, at=block, expected=expected)
        if node.op != "Add" or {*node.inputs} != {inner, value}:
            walk.refuse(node, at=block, expected=expected)
        value = node.outputs[0]
        number += 1
    return value


def _bottleneck(
    walk: Walk, value: str, name: str, channels: int, *, stride: int, first: Node | None = None
) -> tuple[str, int]:
    """Convolutions of 1x1, of 3x3 by channel, and of 1x1. Returns, too, its channels."""
    inner = f"{name}.layers"
    value, hidden = _conv(walk, value, f"{inner}.0", kernel=1, inputs=channels, first=first)
    value, hidden = _conv(
        walk, value, f"{inner}.1", kernel=3, stride=stride, inputs=hidden, groups=hidden
    )
    value, bias = walk.conv(value, f"{inner}.2.layers.0", kernel=1, stride=1, inputs=hidden)
    return walk.norm(value, f"{inner}.2.layers.1", channels=len(bias), bias=bias), len(bias)


def _conv(
    walk: Walk,
    value: str,
    name: str,
    *,
    kernel: int,
    inputs: int,
    stride: int = 1,
    groups: int | None = 1,
    first: Node | None = None,
) -> tuple[str, int]:
    names = [f"{name}.layers.{place}" for place in range(3)]
    return conv_norm_prelu(
        walk, value, names, kernel=kernel, stride=stride, inputs=inputs, groups=groups, first=first
    )
