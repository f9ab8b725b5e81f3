"""A network written as an .onnx file: in float32, float16 or int8."""

from __future__ import annotations

import importlib
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from facestream import UserError
from training.shipping.shipped import Shipped

OPSET = 17  # the newest that torch's exporter without onnxscript writes in full
DTYPES = ("fp32", "fp16", "int8")
IMAGES = "images"
_CALIBRATED_AT_A_TIME = 16  # images


class ExportError(UserError):
    """A network that cannot be exported so, or that came out different."""


def write_onnx(
    shipped: Shipped,
    path: Path,
    *,
    example: torch.Tensor,
    dtype: str,
    calibration: np.ndarray | None,
    metadata: Mapping[str, str],
) -> None:
    """Write the graph with a free batch axis.

    Args:
        example: a batch as the graph takes it.
        dtype: one of DTYPES; embeddings and float images are float32 in all.
        calibration: for int8: images as the graph takes them, from which ranges are measured.
        metadata: texts by name, written beside the graph.

    Raises:
        ExportError: the onnx package or a part of onnxruntime is missing.
    """
    onnx = _require("onnx")
    _write_float32(shipped, path, example)
    model = onnx.load(path)
    if dtype == "fp16":
        model = _in_float16(model)
    if dtype == "int8":
        assert calibration is not None
        model = _in_int8(model, calibration)
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def _write_float32(shipped: Shipped, path: Path, example: torch.Tensor) -> None:
    with warnings.catch_warnings(), torch.no_grad():
        # That this exporter is the older one, and which checks of sizes it leaves out.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            shipped,
            (example,),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=[IMAGES],
            output_names=list(shipped.outputs),
            dynamic_axes={name: {0: "batch"} for name in (IMAGES, *shipped.outputs)},
        )


def _in_float16(model: Any) -> Any:
    """Weights and what is between layers in float16; pixels and lengths, which need more, not."""
    _require("onnxruntime")
    from onnxruntime.quantization.onnx_model import ONNXModel
    from onnxruntime.transformers import float16

    lengths = ("ReduceL2", "Clip", "Expand", "Div", "Sub")
    converted = float16.convert_float_to_float16(
        model, keep_io_types=True, op_block_list=[*float16.DEFAULT_OP_BLOCK_LIST, *lengths]
    )
    # A value's cast is there once for each layer that takes it, and all casts stand at the end.
    nodes = {node.output[0]: node for node in converted.graph.node}
    del converted.graph.node[:]
    converted.graph.node.extend(nodes.values())
    ordered = ONNXModel(converted)
    ordered.topological_sort()
    return ordered.model


def _in_int8(model: Any, images: np.ndarray) -> Any:
    """Convolutions and products in int8, weights by channel, ranges as calibration images show."""
    onnx = _require("onnx")
    _require("onnxruntime")
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self._batches: Iterator[np.ndarray] = iter(
                np.array_split(images, -(-len(images) // _CALIBRATED_AT_A_TIME))
            )

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self._batches, None)
            return None if batch is None else {IMAGES: batch}

    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)  # it recommends what is done here
    try:
        with tempfile.TemporaryDirectory() as folder:
            prepared, written = Path(folder) / "prepared.onnx", Path(folder) / "int8.onnx"
            quant_pre_process(model, prepared, skip_symbolic_shape=True)
            quantization.quantize_static(
                prepared,
                written,
                Reader(),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=["Conv", "Gemm", "MatMul"],
                per_channel=True,
                activation_type=quantization.QuantType.QInt8,
                weight_type=quantization.QuantType.QInt8,
            )
            return onnx.load(written)
    finally:
        logging.getLogger().setLevel(level)


def _require(name: str) -> Any:
    """A package that only exporting needs."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ExportError(f"exporting needs {name}: pip install {name}") from error
