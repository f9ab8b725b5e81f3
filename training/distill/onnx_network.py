"""A network in an ONNX file, run by onnxruntime on torch's tensors where they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from facestream import UserError
from models.input import Input

_SAME = 1e-2  # of the largest value: how far rounding may part two embeddings of an image


class OnnxError(UserError):
    """An ONNX file that cannot be run here: says why and how to mend it."""


class OnnxNetwork:
    """Images as an Input gives them, float32, to the file's first output, (B, D) float32.

    Args:
        path: the .onnx file; its one input is float32 with a free batch size.
        wanted: what its input is, as distill.input says.
        device: where images come from and embeddings go to, without a way over the host.

    Raises:
        OnnxError: onnxruntime is not installed or not for this device, the file does not fit
            `wanted`, or its embedding of an image depends on how many others there are.
    """

    def __init__(self, path: Path, wanted: Input, *, device: torch.device) -> None:
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
            inputs = [
                _Described(node.name, node.type, node.shape) for node in self._session.get_inputs()
            ]
            self._output = self._session.get_outputs()[0].name
        except Exception as error:  # onnxruntime's errors have no base of their own
            raise OnnxError(
                f"{path} cannot be read by onnxruntime: {_first_line(error)}. Copy or export it "
                "again, for this onnxruntime's version"
            ) from error
        # Where the provider's libraries do not load, onnxruntime goes on with the CPU's.
        used = self._session.get_providers()[0]
        if used != provider:
            raise OnnxError(f"{path}: onnxruntime could not start {provider}; {_ON_GPUS}")
        self._input = _only_input(path, inputs, wanted)
        self._dim = self._probe(path, wanted)

    def _probe(self, path: Path, wanted: Input) -> int:
        """D, of batches of two and three images, which must have the same first two embeddings."""
        generator = torch.Generator().manual_seed(0)
        sides = (wanted.size, wanted.size)
        noise = torch.randint(0, 256, (3, 3, *sides), dtype=torch.uint8, generator=generator)
        images = wanted(noise).contiguous().numpy()
        try:
            two, three = (
                self._session.run([self._output], {self._input: images[:n]})[0] for n in (2, 3)
            )
        except Exception as error:
            raise OnnxError(
                f"{path} cannot embed two images, or three: {_first_line(error)}. {_FREE_BATCH}"
            ) from error
        tensors = isinstance(two, np.ndarray)
        if not tensors or two.ndim != 2 or two.dtype != np.float32 or not two.size:
            found = f"{two.dtype} of shape {two.shape}" if tensors else f"a {type(two).__name__}"
            raise OnnxError(
                f"{path} makes {found} of two images, expected float32 embeddings (2, D): export "
                "the network without what follows them"
            )
        if (len(two), len(three)) != (2, 3) or two.shape[1] != three.shape[1]:
            raise OnnxError(
                f"{path} makes {two.shape} of two images and {three.shape} of three: the batch is "
                f"folded into the features. Reshape to (-1, D) there, or flatten. {_FREE_BATCH}"
            )
        if not np.isfinite(three).all():
            raise OnnxError(
                f"{path} makes NaN or infinity of images as {wanted}: its weights are damaged, or "
                "distill.input is not what it was trained on"
            )
        if (abs(two - three[:2]) > _SAME * abs(two).max()).any():
            raise OnnxError(
                f"{path} embeds an image in another way beside two others than beside one: export "
                "the network in evaluation mode (model.eval()), without normalizing over the batch"
            )
        return two.shape[1]

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


_FREE_BATCH = "Export it with a free (dynamic) batch axis"
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


class _Described(NamedTuple):
    """An input as the file describes it."""

    name: str
    type: str
    shape: list[Any]  # numbers where they are fixed


def _only_input(path: Path, inputs: list[_Described], wanted: Input) -> str:
    """The name of the file's input, where it takes what is wanted."""
    if len(inputs) != 1:
        names = ", ".join(node.name for node in inputs)
        raise OnnxError(f"{path} has {len(inputs)} inputs, {names}: expected one, of images")
    (node,) = inputs
    called = f"{path}: its input {node.name} is {node.type} {node.shape}"
    if node.type != "tensor(float)":
        raise OnnxError(f"{called}, expected float32: export it so")
    expected = wanted.shape(0)
    if len(node.shape) != 4:
        raise OnnxError(f"{called}, expected four axes, (batch, {_axes(expected[1:])})")
    batch, *shape = node.shape
    if isinstance(batch, int) and batch > 0:
        raise OnnxError(f"{called}, with {batch} for the batch. {_FREE_BATCH}")
    if any(isinstance(n, int) and n > 0 and n != m for n, m in zip(shape, expected[1:])):
        raise OnnxError(
            f"{called}, and distill.input says {wanted}, (batch, {_axes(expected[1:])}). "
            + _remedy(shape)
        )
    return node.name


def _remedy(shape: list[Any]) -> str:
    """The settings that would fit a file whose images are of this shape, if any would."""
    for layout, channels, sides in (("nchw", shape[0], shape[1:]), ("nhwc", shape[2], shape[:2])):
        sizes = {side for side in sides if isinstance(side, int)}
        if channels == 3 and len(sizes) <= 1:
            size = "".join(f" distill.input.size={side}" for side in sizes)
            return f"Set distill.input.layout={layout}{size}"
    return "Expected three channels, and height and width alike"


def _axes(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
