"""A network in an ONNX file, run by onnxruntime on torch's tensors where they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


class OnnxError(ValueError):
    """An ONNX file that cannot be run here: says why and how to mend it."""


class OnnxNetwork:
    """Normalized images (B, 3, H, W) float32 to the file's first output, (B, D) float32.

    Args:
        path: the .onnx file; its one input is NCHW float32 with a free batch size.
        device: where images come from and embeddings go to, without a way over the host.
        image_size: H and W in pixels.

    Raises:
        OnnxError: onnxruntime is not installed or not for this device, or the file does not fit.
    """

    def __init__(self, path: Path, *, device: torch.device, image_size: int) -> None:
        self._device = device
        provider = f"{device.type.upper()}ExecutionProvider"
        runtime = _import_onnxruntime(path, provider)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        settings = {} if device.type == "cpu" else {"device_id": str(device.index or 0)}
        try:
            self._session = runtime.InferenceSession(
                str(path), options, providers=[(provider, settings)]
            )
            (self._input,) = (node.name for node in self._session.get_inputs())
            self._output = self._session.get_outputs()[0].name
            black = np.full((2, 3, image_size, image_size), -1, np.float32)
            (probe,) = self._session.run([self._output], {self._input: black})
        except Exception as error:  # onnxruntime's errors have no base of their own
            raise OnnxError(
                f"{path} cannot embed two images: {_first_line(error)}. Expected one input "
                f"(batch, 3, {image_size}, {image_size}) of float32 with a free batch size: "
                "export it with a dynamic batch axis, for images of data.image_size"
            ) from error
        # Where the provider's libraries do not load, onnxruntime goes on with the CPU's.
        used = self._session.get_providers()[0]
        if used != provider:
            raise OnnxError(f"{path}: onnxruntime could not start {provider}; {_ON_GPUS}")
        if probe.ndim != 2 or probe.dtype != np.float32:
            raise OnnxError(
                f"{path} makes {probe.dtype} of shape {probe.shape} of two images, expected "
                "float32 embeddings (2, D): export the network without what follows them"
            )
        self._dim = probe.shape[1]

    def __call__(self, images: Tensor) -> Tensor:
        """Embed (B, 3, H, W) float32 on the device as (B, D) float32 there."""
        images = images.contiguous()
        embeddings = torch.empty(len(images), self._dim, device=self._device)
        binding = self._session.io_binding()
        where = (self._device.type, self._device.index or 0, np.float32)
        binding.bind_input(self._input, *where, tuple(images.shape), images.data_ptr())
        binding.bind_output(self._output, *where, tuple(embeddings.shape), embeddings.data_ptr())
        if self._device.type != "cpu":
            # onnxruntime has a stream of its own, which does not wait for torch's.
            torch.get_device_module(self._device).current_stream(self._device).synchronize()
        self._session.run_with_iobinding(binding)
        return embeddings


_ON_GPUS = (
    "on GPUs it takes `pip install onnxruntime-gpu` for their CUDA version, and no onnxruntime "
    "beside it. Or cache the teacher's embeddings on a CPU: tools/cache_teacher.py"
)


def _import_onnxruntime(path: Path, provider: str) -> Any:
    """onnxruntime, which only ONNX files need."""
    try:
        import onnxruntime
    except ImportError as error:
        raise OnnxError(
            f"{path}: onnxruntime is not installed; `pip install onnxruntime` runs it on CPUs, "
            f"{_ON_GPUS}"
        ) from error
    available = onnxruntime.get_available_providers()
    if provider not in available:
        raise OnnxError(
            f"{path}: this onnxruntime has {', '.join(available)}, expected {provider}: {_ON_GPUS}"
        )
    return onnxruntime


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
