"""A walk along a graph from the images, layer by layer of a network of ours, that takes weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np

from training.saving.weight_file import WeightsError
from training.weights.onnx_import.affine import Affine, Norm, as_norm
from training.weights.onnx_import.graph import Graph, Node

_SHIFTS = {"Add": 1, "Sub": -1}
_SCALES = ("Mul", "Div")


class Walk:
    """Takes the weights of one layer after another, under our names.

    Every method goes on from a value, whose name it is given, and returns that of what the layer
    makes. Raises WeightsError, with the first operator that is another, where the layer is not
    there.

    Attributes:
        tensors: what was taken, float32.
        unfolded: names of the BatchNorms whose statistics are not those of images.
    """

    def __init__(self, graph: Graph, path: Path) -> None:
        self.tensors: dict[str, np.ndarray] = {}
        self.unfolded: list[str] = []
        self._graph, self._path = graph, path

    def takers(self, value: str) -> list[Node]:
        """The operators that take a value."""
        return self._graph.takers(value)

    def only_taker(self, value: str, *, at: str, expected: str) -> Node:
        """The one operator that takes a value, on the way to our layer `at`."""
        takers = self.takers(value)
        if not takers:
            raise WeightsError(
                f"{self._path}: the graph ends with {value!r}, where {at} should be: expected "
                f"{expected}. {_REMEDY}"
            )
        if len(takers) != 1:
            self.refuse(takers[1], at=at, expected=f"nothing beside {takers[0].called}")
        return takers[0]

    def refuse(self, node: Node, *, at: str, expected: str, found: str = "") -> NoReturn:
        """Raise WeightsError for an operator where our layer `at` should be."""
        raise WeightsError(
            f"{self._path}: {node.called} does not fit where {at} should be: "
            f"{found and f'found {found}, '}expected {expected}. {_REMEDY}"
        )

    def conv(
        self,
        value: str,
        name: str,
        *,
        kernel: int | None,
        stride: int,
        inputs: int,
        padded: bool = True,
        groups: int | None = 1,
        first: Node | None = None,
    ) -> tuple[str, np.ndarray]:
        """A convolution without bias of ours. Returns, too, the bias that it has there, (C,).

        Args:
            kernel: its side; None for any.
            padded: whether by zeros, half of the kernel.
            groups: None for any number.
            first: the operator, where the value has several takers.
        """
        size = f"{kernel}x{kernel}" if kernel else "unpadded"
        expected = f"a convolution ({size}, stride {stride}, of {inputs} channels)"
        node = first or self.only_taker(value, at=name, expected=expected)
        if node.op != "Conv" or node.inputs[0] != value:
            self.refuse(node, at=name, expected=expected)
        weight = self.constant(node, 1, at=name)
        if weight.ndim != 4 or weight.shape[2] != weight.shape[3] or 0 in weight.shape:
            self.refuse(node, at=name, expected=expected, found=f"weights {weight.shape}")
        given, side = node.attributes, weight.shape[2]
        count = given.get("group", 1)
        by_hand = given.get("auto_pad", b"NOTSET") in (b"NOTSET", b"VALID")
        for what, found, wanted in (
            ("kernel", side, kernel or side),
            ("strides", [*given.get("strides", [1, 1])], [stride] * 2),
            ("auto_pad", not by_hand, False),
            ("padding", [*given.get("pads", [0] * 4)], [side // 2 if padded else 0] * 4),
            ("dilations", [*given.get("dilations", [1, 1])], [1, 1]),
            ("groups", count, groups or count),
            ("channels", weight.shape[1] * count, inputs),
        ):
            if found != wanted:
                self.refuse(node, at=name, expected=expected, found=f"{what} {found}")
        self.tensors[f"{name}.weight"] = weight.astype(np.float32)
        bias = np.zeros(len(weight))
        if len(node.inputs) > 2 and node.inputs[2]:
            bias = self.constant(node, 2, at=name).astype(np.float64)
            if bias.shape != (len(weight),):
                self.refuse(node, at=name, expected=expected, found=f"a bias {bias.shape}")
        return node.outputs[0], bias

    def norm(
        self,
        value: str,
        name: str,
        *,
        channels: int,
        axes: int = 4,
        bias: np.ndarray | None = None,
        first: Node | None = None,
    ) -> str:
        """A BatchNorm, or scales and shifts instead of it or beside it, or nothing.

        Args:
            axes: of the value, 4 or 2.
            bias: that the layer before it adds, and ours does not.
            first: the operator, where the value has several takers.
        """
        before, batch_norm, after = Affine.identity(channels), None, Affine.identity(channels)
        if bias is not None:
            before = before.then(1.0, bias)
        while node := first or self._only(value):
            first = None
            found = self._batch_norm(node, value, channels, at=name)
            step = self.scale_and_shift(node, value, channels, axes)
            if found and batch_norm is None:
                batch_norm = found
            elif found or step:
                scale, shift = found.as_affine() if found else step
                if batch_norm is None:
                    before = before.then(scale, shift)
                else:
                    after = after.then(scale, shift)
            else:
                break
            value = node.outputs[0]
        tensors, of_images = as_norm(before, batch_norm, after)
        self.tensors |= {f"{name}.{key}": tensor for key, tensor in tensors.items()}
        if not of_images:
            self.unfolded.append(name)
        return value

    def prelu(self, value: str, name: str, *, channels: int) -> str:
        """A PReLU with a slope a channel, or one for all."""
        expected = f"PRelu with {channels} slopes"
        node = self.only_taker(value, at=name, expected=expected)
        if node.op != "PRelu" or node.inputs[0] != value:
            self.refuse(node, at=name, expected=expected)
        slope = self.constant(node, 1, at=name)
        if (slope.size != 1 and slope.shape[-3:] != (channels, 1, 1)) or slope.size > channels:
            self.refuse(node, at=name, expected=expected, found=f"slopes {slope.shape}")
        self.tensors[f"{name}.weight"] = np.broadcast_to(slope.ravel(), channels).astype(np.float32)
        return node.outputs[0]

    def flatten(self, value: str, *, at: str) -> str:
        """(B, C, H, W) to (B, C·H·W); that it is so is left to the comparison of embeddings."""
        expected = "Flatten or Reshape, to (batch, features)"
        node = self.only_taker(value, at=at, expected=expected)
        if node.op not in ("Flatten", "Reshape", "Squeeze") or node.inputs[0] != value:
            self.refuse(node, at=at, expected=expected)
        return node.outputs[0]

    def linear(self, value: str, name: str) -> tuple[str, np.ndarray]:
        """A product with a matrix. Returns, too, the bias that it has there, (D,)."""
        expected = "Gemm or MatMul with constant weights"
        node = self.only_taker(value, at=name, expected=expected)
        if node.op not in ("Gemm", "MatMul") or node.inputs[0] != value:
            self.refuse(node, at=name, expected=expected)
        weight = self.constant(node, 1, at=name)
        given = node.attributes
        if weight.ndim != 2 or given.get("transA", 0):
            found = f"weights {weight.shape}"
            self.refuse(node, at=name, expected=expected, found=found)
        if not given.get("transB", 0):
            weight = weight.T
        self.tensors[f"{name}.weight"] = np.float32(given.get("alpha", 1.0)) * weight.astype(
            np.float32
        )
        bias = np.zeros(len(weight))
        if len(node.inputs) > 2 and node.inputs[2]:
            added = self.constant(node, 2, at=name).astype(np.float64) * given.get("beta", 1.0)
            if added.size not in (1, len(weight)) or added.shape[-1:] != (added.size,):
                self.refuse(node, at=name, expected=expected, found=f"a bias {added.shape}")
            bias = bias + added.ravel()
        return node.outputs[0], bias

    def constant(self, node: Node, place: int, *, at: str) -> np.ndarray:
        """An input of an operator that is a constant of finite float32."""
        name = node.inputs[place] if place < len(node.inputs) else ""
        value = self._graph.constants.get(name)
        if value is None:
            self.refuse(node, at=at, expected="constant weights", found="computed ones")
        if value.dtype != np.float32:
            self.refuse(node, at=at, expected="float32 or float16", found=f"{value.dtype} weights")
        if not np.isfinite(value).all():
            raise WeightsError(
                f"{self._path}: the weights {name!r} of {node.called} have NaN or infinity in "
                "them: this training had diverged. Take a file that was made before"
            )
        return value

    def scale_and_shift(
        self, node: Node, value: str, channels: int, axes: int
    ) -> tuple[np.ndarray | float, np.ndarray | float] | None:
        """Those of an operator with a constant, by channel or one for all; None for any other.

        Args:
            axes: of the value after and with that of the channels, and the batch's: 4 or 2.
        """
        if node.op not in (*_SHIFTS, *_SCALES) or len(node.inputs) != 2:
            return None
        place = node.inputs.index(value)
        constant = self._graph.constants.get(node.inputs[1 - place])
        if constant is None or (place == 1 and node.op in ("Sub", "Div")):
            return None
        by_channel = (channels,) + (1,) * (axes - 2)
        if constant.size != 1 and constant.shape[-(axes - 1) :] != by_channel:
            return None
        if constant.size not in (1, channels):
            return None
        number = self.constant(node, 1 - place, at="a scale or shift").astype(np.float64).ravel()
        if node.op in _SHIFTS:
            return 1.0, _SHIFTS[node.op] * number
        if node.op == "Div" and (number == 0).any():
            return None
        return (number if node.op == "Mul" else 1 / number), 0.0

    def _only(self, value: str) -> Node | None:
        takers = self.takers(value)
        return takers[0] if len(takers) == 1 and value not in self._graph.outputs else None

    def _batch_norm(self, node: Node, value: str, channels: int, *, at: str) -> Norm | None:
        if node.op != "BatchNormalization" or node.inputs[0] != value:
            return None
        given = node.attributes
        if given.get("training_mode", 0) or given.get("spatial", 1) != 1:
            self.refuse(node, at=at, expected="BatchNormalization as in evaluation")
        weight, bias, mean, var = (
            self.constant(node, place, at=at).astype(np.float64) for place in range(1, 5)
        )
        for one in (weight, bias, mean, var):
            if one.shape != (channels,):
                expected = f"BatchNormalization of {channels} channels"
                self.refuse(node, at=at, expected=expected, found=f"weights {one.shape}")
        eps = given.get("epsilon", 1e-5)
        if (var < 0).any() or not (var + eps > 0).all():
            self.refuse(node, at=at, expected="variances of 0 or more", found="negative ones")
        return Norm(weight, bias, mean, var, eps)


_REMEDY = (
    "Only IResNets and MobileFaceNets, as arcface_torch has them, can be trained on from an .onnx "
    "file; others can be run as they are, as by tools/evaluate.py and distill.teacher"
)


def conv_norm_prelu(
    walk: Walk,
    value: str,
    names: Sequence[str],
    *,
    kernel: int,
    stride: int,
    inputs: int,
    groups: int | None = 1,
    first: Node | None = None,
) -> tuple[str, int]:
    """A convolution, BatchNorm and PReLU, by their names. Returns, too, its channels."""
    conv, norm, prelu = names
    value, bias = walk.conv(
        value, conv, kernel=kernel, stride=stride, inputs=inputs, groups=groups, first=first
    )
    value = walk.norm(value, norm, channels=len(bias), bias=bias)
    return walk.prelu(value, prelu, channels=len(bias)), len(bias)
