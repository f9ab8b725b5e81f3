"""A graph reduced to what it computes of images: without names, copies and constant arithmetic."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training.saving.weight_file import WeightsError
from training.weights.onnx_import.content import FLOAT, named, numbers_in, require_onnx

# What changes no value in evaluation; the first input goes on.
_TRANSPARENT = ("Identity", "Dropout", "Cast")
# Of constants alone these are done here: how exporters make weights and shapes out of others.
_FOLDED = {
    *("Identity", "Cast", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Concat"),
    *("Shape", "Expand", "Gather", "Slice", "Add", "Sub", "Mul", "Div", "Sqrt", "Neg"),
    *("Reciprocal", "ConstantOfShape"),
}
_BROADCAST = ("Add", "Sub", "Mul", "Div")
_GROWS = {"Expand": 1, "ConstantOfShape": 0}  # which of its inputs says how large they become
_LARGEST = 1 << 28  # values of all constants that are made here: twice those of an iresnet200


@dataclass(frozen=True)
class Node:
    """An operator on what is computed of images.

    Attributes:
        inputs: names of values; "" where one is left out.
        called: for messages.
    """

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    called: str


class Graph:
    """What is computed of images, in order, and by whom each value is taken.

    Attributes:
        path: of the file.
        images: the one input's name.
        shape: its shape, numbers where they are fixed.
        outputs: by the value that it is: the output's name in the file.
        nodes: in order; those that lead to no output are left out, and those that only compute
            shapes.
        constants: by name.
    """

    def __init__(self, model: Any, path: Path) -> None:
        self._onnx = require_onnx(path)
        self.path = path
        self._opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
        self.constants = {
            tensor.name: numbers_in(tensor, tensor.name, path) for tensor in model.graph.initializer
        }
        fed = [value for value in model.graph.input if value.name not in self.constants]
        if len(fed) != 1:
            names = ", ".join(value.name for value in fed) or "none"
            raise WeightsError(f"{path} has {len(fed)} inputs, {names}: expected one, of images")
        self.images = fed[0].name
        axes = fed[0].type.tensor_type.shape.dim
        self.shape = [axis.dim_value or axis.dim_param or None for axis in axes]
        if len(self.shape) != 4:
            raise WeightsError(
                f"{path}: its input {self.images} has the axes {self.shape}: expected four, those "
                "of a batch of images"
            )
        self._stands_for: dict[str, str] = {}
        self._sizes: set[str] = set()  # values that are shapes, or made of them
        self._made = 0  # values of constants that were made of others
        nodes = [made for node in model.graph.node if (made := self._reduced(node))]
        outputs = [value.name for value in model.graph.output]
        self.outputs = {self._stands_for.get(name, name): name for name in reversed(outputs)}
        self.nodes = self._living(nodes)
        self._takers: dict[str, list[Node]] = {}
        for node in self.nodes:
            for value in dict.fromkeys(node.inputs):
                self._takers.setdefault(value, []).append(node)

    def takers(self, value: str) -> list[Node]:
        """The operators that take a value, in order."""
        return self._takers.get(value, [])

    def _reduced(self, node: Any) -> Node | None:
        """A node of the file as one of ours; None for what is no operator on images' values."""
        inputs = tuple(self._stands_for.get(name, name) for name in node.input)
        if node.domain not in ("", "ai.onnx"):
            raise WeightsError(
                f"{self.path}: {named(node)} is of the domain {node.domain!r}, expected ONNX's "
                "own operators: export it without"
            )
        fixed = [name in self.constants for name in inputs if name]
        if node.op_type == "Constant":
            self.constants[node.output[0]] = self._constant(node)
        elif node.op_type == "CastLike" and any(name in self.constants for name in inputs[:1]):
            self.constants[node.output[0]] = self.constants[inputs[0]].astype(np.float32)
        elif all(fixed) and node.op_type in _FOLDED:
            self.constants[node.output[0]] = self._fold(node, inputs)
        elif self._is_size(node, inputs):
            self._sizes.update(node.output)
        elif node.op_type in _TRANSPARENT and any(inputs[:1]) and self._keeps_values(node):
            self._stands_for[node.output[0]] = inputs[0]
        else:
            attributes = {
                one.name: self._onnx.helper.get_attribute_value(one) for one in node.attribute
            }
            return Node(node.op_type, inputs, tuple(node.output), attributes, named(node))
        return None

    def _constant(self, node: Any) -> np.ndarray:
        for attribute in node.attribute:
            value = self._onnx.helper.get_attribute_value(attribute)
            if attribute.name == "value":
                return numbers_in(value, node.output[0], self.path)
            if attribute.name in ("value_float", "value_floats"):
                return np.array(value, np.float32)
            if attribute.name in ("value_int", "value_ints"):
                return np.array(value, np.int64)
        raise WeightsError(f"{self.path}: {named(node)} has no number in it: export it again")

    def _fold(self, node: Any, inputs: tuple[str, ...]) -> np.ndarray:
        from onnx.reference import ReferenceEvaluator

        values: dict[Any, Any] = {
            name: self.constants[given] for name, given in zip(node.input, inputs) if name
        }
        try:
            self._made += _size_at_most(node, [values.get(name) for name in node.input])
            if self._made > _LARGEST:
                raise ValueError(
                    f"{self._made:,} values of constants alone, expected at most {_LARGEST:,}"
                )
            helper = self._onnx.helper
            given = [helper.make_tensor_value_info(name, FLOAT, None) for name in values]
            output = helper.make_tensor_value_info(node.output[0], FLOAT, None)
            graph = helper.make_graph([node], "constant", given, [output])
            alone = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self._opset)])
            results: Any = ReferenceEvaluator(alone).run(None, values)
            return np.asarray(results[0])
        except Exception as error:  # what the operators of the onnx package raise has no bounds
            raise WeightsError(
                f"{self.path}: {named(node)} cannot be computed ({error}): export it again"
            ) from error

    def _is_size(self, node: Any, inputs: tuple[str, ...]) -> bool:
        """Whether what it makes is a shape of something, or made of shapes and constants alone."""
        if node.op_type == "Shape":
            return True
        given = [name for name in inputs if name and name not in self.constants]
        return bool(given) and all(name in self._sizes for name in given)

    def _keeps_values(self, node: Any) -> bool:
        if node.op_type == "Dropout":
            return len(node.input) < 3 or self._is_false(node.input[2])
        return node.op_type != "Cast" or any(
            one.name == "to" and one.i == FLOAT for one in node.attribute
        )

    def _is_false(self, name: str) -> bool:
        value = self.constants.get(self._stands_for.get(name, name))
        return not name or (value is not None and not value.any())

    def _living(self, nodes: list[Node]) -> list[Node]:
        wanted, living = set(self.outputs), []
        for node in reversed(nodes):
            if wanted & {*node.outputs}:
                wanted |= {*node.inputs}
                living.append(node)
        return living[::-1]


def _size_at_most(node: Any, given: Sequence[np.ndarray | None]) -> int:
    """How many values an operator of `_FOLDED` makes of these, at most."""
    arrays = [one for one in given if one is not None]
    shapes = [one.shape for one in arrays]
    if node.op_type in _GROWS:
        wanted = given[_GROWS[node.op_type]]
        assert wanted is not None
        shapes = [*shapes[: _GROWS[node.op_type]], tuple(wanted.ravel().tolist())]
    if node.op_type == "Concat":
        return sum(one.size for one in arrays)
    if node.op_type == "Gather":
        axis = next((one.i for one in node.attribute if one.name == "axis"), 0)
        return arrays[0].size // max(arrays[0].shape[axis], 1) * arrays[1].size
    if node.op_type in _GROWS or node.op_type in _BROADCAST:
        # Not by numpy, whose sizes overflow.
        longest = max(map(len, shapes))
        aligned = zip(*((1,) * (longest - len(shape)) + shape for shape in shapes))
        return math.prod(max(axis) for axis in aligned)
    return max(one.size for one in arrays)
