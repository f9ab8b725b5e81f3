"""An .onnx file's content: read without running it, within bounds, its float16 weights widened."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.named_path import MALFORMED, check_path
from training.frozen.onnx_file import OnnxError, external_files
from training.saving.weight_file import WeightsError

FLOAT, FLOAT16 = 1, 10  # of onnx.TensorProto.DataType
_EXTERNAL = 1  # of onnx.TensorProto.DataLocation
_OPSETS = range(7, 100)  # before 7, operators name the axes that they broadcast; after, see below
_QUANTIZED = ("Quant", "Integer", "QLinear")  # in the names of operators
_LARGEST = 1 << 30  # bytes of weights: an iresnet200 has half of that
_DEEPEST = 4  # graphs within graphs


def read_content(path: Path) -> tuple[Any, bool]:
    """The onnx.ModelProto in a file, with all its weights in it; and whether any were float16.

    float16 is made float32 throughout, in weights and operators: the same numbers, computed with
    less rounding.

    Raises:
        WeightsError: the file is none, damaged, too large, of an unknown opset, quantized, or
            takes weights from where it must not; or the onnx package is missing.
        PathError: there is no such file.
    """
    check_path(path, called=str(path), expected="an .onnx file")
    onnx = require_onnx(path)
    try:
        outside = external_files(path)
    except OnnxError as error:
        raise WeightsError(str(error)) from error
    size = sum(os.path.getsize(file) for file in (path, *outside))
    if size > _LARGEST:
        raise WeightsError(f"{path} has {size:,} bytes of weights, expected at most {_LARGEST:,}")
    try:
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except Exception as error:  # what parsers raise for damaged bytes has no bounds
        raise WeightsError(
            f"{path} cannot be read as ONNX ({type(error).__name__}): copy or export it again"
        ) from error
    if not model.graph.node:
        raise WeightsError(f"{path} holds no graph: copy or export it again")
    _require_opset(model, path, newest=onnx.defs.onnx_opset_version())
    _require_floating(model, path)
    _load_external(model, path, onnx)
    _require_valid(model, path, onnx)
    return model, _widen(model, path, onnx)


def require_onnx(path: Path) -> Any:
    """The onnx package, which only .onnx files need. Raises WeightsError where it is missing."""
    try:
        return importlib.import_module("onnx")
    except ImportError as error:
        raise WeightsError(f"{path} needs onnx: pip install onnx onnxruntime") from error


def numbers_in(tensor: Any, name: str, path: Path) -> np.ndarray:
    """What an onnx.TensorProto holds. Raises WeightsError, with this name, for a damaged one."""
    try:
        return require_onnx(path).numpy_helper.to_array(tensor)
    except (*MALFORMED, MemoryError) as error:
        raise WeightsError(
            f"{path}: the weights {name!r} are damaged ({error}): copy or export it again"
        ) from error


def named(node: Any) -> str:
    """A node of onnx's, for messages: by its name, or by what it makes."""
    called = repr(node.name) if node.name else f"that makes {list(node.output)[:1]}"
    return f"node {called} ({node.op_type})"


def _require_opset(model: Any, path: Path, *, newest: int) -> None:
    versions = [one.version for one in model.opset_import if one.domain in ("", "ai.onnx")]
    if len(versions) != 1 or versions[0] not in _OPSETS or versions[0] > newest:
        found = ", ".join(map(str, versions)) or "none"
        newer = ", or update onnx" if any(version > newest for version in versions) else ""
        raise WeightsError(
            f"{path} is of opset {found}, expected one from {_OPSETS[0]} to {newest}: export it "
            f"with opset 17{newer}"
        )


def _require_floating(model: Any, path: Path) -> None:
    for node in _nodes(model.graph, 0):
        if any(word in node.op_type for word in _QUANTIZED):
            raise WeightsError(
                f"{path}: {named(node)} computes in int8: a quantized network has lost what "
                "training needs. Take the float32 or float16 file that it was made from"
            )


def _load_external(model: Any, path: Path, onnx: Any) -> None:
    """Put weights from other files into the model. Each must lie inside its file."""
    loaded = 0
    for tensor in _tensors(model):
        if tensor.data_location != _EXTERNAL:
            continue
        try:
            info = onnx.external_data_helper.ExternalDataInfo(tensor)
            there = os.path.getsize(path.parent / info.location) - (info.offset or 0)
            length = there if info.length is None else info.length
            loaded += length
            if not 0 <= length <= there or loaded > _LARGEST:
                raise ValueError(f"{length:,} bytes where {there:,} are left")
            onnx.external_data_helper.load_external_data_for_tensor(tensor, str(path.parent))
        except Exception as error:  # the checks of the onnx package raise what they like
            raise WeightsError(
                f"{path}: the weights {tensor.name!r} cannot be read from the file beside it "
                f"({error}): copy both files, or export it again"
            ) from error
        tensor.data_location = 0


def _require_valid(model: Any, path: Path, onnx: Any) -> None:
    """Operators have inputs and attributes of their kinds, in an order in which a walk ends."""
    try:
        onnx.checker.check_model(model)
    except Exception as error:  # it raises more than its own
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise WeightsError(f"{path} is no valid ONNX: {reason}. Export it again") from error


def _widen(model: Any, path: Path, onnx: Any) -> bool:
    """Make float16 float32 in place; returns whether there was any."""
    found = False
    for tensor in _tensors(model):
        if tensor.data_type == FLOAT16:
            wide = numbers_in(tensor, tensor.name, path).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(wide, tensor.name))
            found = True
    for node in _nodes(model.graph, 0):
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == FLOAT16:
                attribute.i = FLOAT
                found = True
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        if value.type.tensor_type.elem_type == FLOAT16:
            value.type.tensor_type.elem_type = FLOAT
            found = True
    return found


def _tensors(model: Any) -> Iterator[Any]:
    """The weights of a model, and those inside its nodes."""
    yield from model.graph.initializer
    for node in _nodes(model.graph, 0):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t


def _nodes(graph: Any, depth: int) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g") and depth < _DEEPEST:
                yield from _nodes(attribute.g, depth + 1)
