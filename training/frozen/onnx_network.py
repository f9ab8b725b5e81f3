"""A network in an ONNX file, run by onnxruntime on torch's tensors where they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.input import Input
from training.frozen.onnx_file import OnnxError, external_files

_SAME = 1e-2  # of the largest value: how far rounding may part two embeddings of an image
_DTYPES = {
    "tensor(float)": (torch.float32, np.float32),
    "tensor(float16)": (torch.float16, np.float16),
}
# Whose graph makes of pixels what its network takes.
_TAKES = {**_DTYPES, "tensor(uint8)": (torch.uint8, np.uint8)}
_FREE_BATCH = "Export it with a free (dynamic) batch axis"
_ON_GPUS = (
    "on GPUs it takes `pip install onnxruntime-gpu` for their CUDA version, and no onnxruntime "
    "beside it. Or use a CPU: tools/evaluate.py --device cpu; for a teacher, tools/cache_teacher.py"
)


class Described(NamedTuple):
    """An input or output as the file describes it."""

    name: str
    type: str
    shape: list[Any]  # numbers where they are fixed


@dataclass(frozen=True)
class OnnxFile:
    """An ONNX file that onnxruntime has loaded onto a device.

    Attributes:
        images: its one input.
        metadata: what its author wrote beside the graph, text by text.
    """

    path: Path
    device: torch.device
    session: Any
    images: Described
    metadata: Mapping[str, str]


def open_onnx(path: Path, *, device: torch.device) -> OnnxFile:
    """Load a file onto a device, in as many threads as torch has.

    Raises:
        OnnxError: onnxruntime is not installed or not for this device, the file cannot be read,
            takes weights from outside its folder, or has not one input of floating numbers or bytes
            with four axes.
    """
    provider = f"{device.type.upper()}ExecutionProvider"
    runtime = _import_onnxruntime(path, provider)
    external_files(path)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # of what it finds odd in a file it warns at every batch
    settings = {} if device.type == "cpu" else {"device_id": str(device.index or 0)}
    try:
        session = runtime.InferenceSession(str(path), options, providers=[(provider, settings)])
        inputs = [Described(node.name, node.type, node.shape) for node in session.get_inputs()]
        metadata = dict(session.get_modelmeta().custom_metadata_map)
    except Exception as error:  # onnxruntime's errors have no base of their own
        raise OnnxError(
            f"{path} cannot be read by onnxruntime: {_first_line(error)}. Copy or export it "
            "again, for this onnxruntime's version"
        ) from error
    # Where the provider's libraries do not load, onnxruntime goes on with the CPU's.
    if session.get_providers()[0] != provider:
        raise OnnxError(f"{path}: onnxruntime could not start {provider}; {_ON_GPUS}")
    return OnnxFile(path, device, session, _only_input(path, inputs), metadata)


class OnnxNetwork:
    """Images as an Input gives them, float32, to one of the file's outputs, (B, D) float32.

    A file whose batch size is fixed is given that many images at a time.

    Args:
        file: whose embeddings are float32 or float16, and its input that or uint8.
        wanted: what its input is.
        output: which of its outputs has the embeddings; where there is only one that can, none has
            to be named.

    Raises:
        OnnxError: the file does not fit `wanted`, or its embedding of an image depends on which
            others there are.
    """

    def __init__(self, file: OnnxFile, wanted: Input, *, output: str = "") -> None:
        self._file = file
        _check_shape(file, wanted)
        batch = file.images.shape[0]
        self._fixed = batch if isinstance(batch, int) and batch > 0 else 0
        self._dtype, self._element = _TAKES[file.images.type]
        self._output, self._tail, self._gives = self._probe(wanted, output)
        self._as_declared = _batch_is_declared(file, self._output)

    @property
    def embedding_dim(self) -> int:
        """D."""
        return self._tail[0]

    def __call__(self, images: Tensor) -> Tensor:
        """Embed (B, 3, H, W) float32 on the device as (B, D) float32 there."""
        if self._dtype == torch.uint8:
            images = images.round().clamp(0, 255)
        images = images.to(self._dtype).contiguous()
        if not self._fixed:
            return self._embed(images)
        parts = [self._embed(_filled(part, self._fixed)) for part in images.split(self._fixed)]
        return torch.cat(parts)[: len(images)]

    def _embed(self, images: Tensor) -> Tensor:
        dtype, element = self._gives
        shape, device = (len(images), *self._tail), self._file.device
        binding = self._file.session.io_binding()
        where = (device.type, device.index or 0)
        binding.bind_input(
            self._file.images.name,
            *(*where, self._element),
            tuple(images.shape),
            images.data_ptr(),
        )
        if self._as_declared:
            embeddings = torch.empty(shape, dtype=dtype, device=device)
            binding.bind_output(self._output, *where, element, shape, embeddings.data_ptr())
        else:
            binding.bind_output(self._output)  # memory of onnxruntime's own, on the CPU
        if device.type != "cpu":
            # onnxruntime has a stream of its own, which does not wait for torch's.
            torch.get_device_module(device).current_stream(device).synchronize()
        self._file.session.run_with_iobinding(binding)
        if not self._as_declared:
            embeddings = torch.from_numpy(binding.copy_outputs_to_cpu()[0]).to(device)
        return embeddings.flatten(1).float()

    def _probe(self, wanted: Input, output: str) -> tuple[str, tuple[int, ...], tuple[Any, Any]]:
        """The output's name, its shape without the batch, and its dtype for torch and numpy.

        Batches of two and three images must have the same first two embeddings; where the batch
        size is fixed, a batch and the same in reverse must.
        """
        path, session = self._file.path, self._file.session
        generator = torch.Generator().manual_seed(0)
        sides = (wanted.size, wanted.size)
        noise = torch.randint(
            0, 256, (max(3, self._fixed), 3, *sides), dtype=torch.uint8, generator=generator
        )
        images = wanted(noise).contiguous().numpy().astype(self._element)
        if self._fixed:
            batches = [images[: self._fixed], images[: self._fixed][::-1].copy()]
        else:
            batches = [images[:2], images[:3]]
        sizes = [len(batch) for batch in batches]
        names = [node.name for node in session.get_outputs()]
        if output and output not in names:
            raise OnnxError(f"{path} has no output {output!r}: expected one of {', '.join(names)}")
        try:
            found = [session.run(None, {self._file.images.name: batch}) for batch in batches]
        except Exception as error:
            raise OnnxError(
                f"{path} cannot embed {sizes[0]} images, or {sizes[1]}: {_first_line(error)}. "
                f"{_FREE_BATCH}"
            ) from error
        name, first, second = _embeddings(path, names, found, sizes, output)
        if self._fixed:
            second = second[::-1]
        if not np.isfinite(second).all():
            raise OnnxError(
                f"{path} makes NaN or infinity of images as {wanted}: its weights are damaged, or "
                "that is not what it was trained on"
            )
        pairs = zip(first.astype(np.float32), second.astype(np.float32))
        if any((abs(a - b) > _SAME * abs(first).max()).any() for a, b in pairs):
            raise OnnxError(
                f"{path} embeds an image in another way beside two others than beside one: export "
                "the network in evaluation mode (model.eval()), without normalizing over the batch"
            )
        return name, first.shape[1:], _gives(first)


def _batch_is_declared(file: OnnxFile, output: str) -> bool:
    """Whether the output may be given memory: not where the file declares another batch size.

    InsightFace's own files do: their input's batch is free, and their output's is 1.
    """
    (node,) = (node for node in file.session.get_outputs() if node.name == output)
    return (
        not node.shape
        or not isinstance(node.shape[0], int)
        or file.images.shape[0] in node.shape[:1]
    )


def _embeddings(
    path: Path,
    names: list[str],
    found: list[list[Any]],
    sizes: list[int],
    wanted: str,
) -> tuple[str, np.ndarray, np.ndarray]:
    """The output that holds embeddings, and what it holds of both batches."""
    outputs = {name: both for name, *both in zip(names, *found) if wanted in ("", name)}
    fitting = {
        name: both
        for name, both in outputs.items()
        if all(_are_rows(one, size) for one, size in zip(both, sizes))
        and both[0].shape[1:] == both[1].shape[1:]
    }
    if len(fitting) > 1:
        # Norms or qualities that some networks give beside the embeddings are a column.
        fitting = {name: both for name, both in fitting.items() if both[0].shape[1] > 1} or fitting
    if len(fitting) == 1:
        ((name, (first, second)),) = fitting.items()
        return name, first, second
    if fitting:
        listed = ", ".join(f"{name} ({both[0].shape[1]} values)" for name, both in fitting.items())
        raise OnnxError(
            f"{path} has several outputs that may be embeddings: {listed}. Name one by --onnx-input"
            " output=NAME, or export the network with that one alone"
        )
    (first, second), (n, m) = next(iter(outputs.values())), sizes
    folded = all(isinstance(one, np.ndarray) and one.ndim == 2 for one in (first, second))
    if folded and first.size and n != m:
        raise OnnxError(
            f"{path} makes {first.shape} of {n} images and {second.shape} of {m}: the batch is "
            f"folded into the features. Reshape to (-1, D) there, or flatten. {_FREE_BATCH}"
        )
    tensors = isinstance(first, np.ndarray)
    made = f"{first.dtype} of shape {first.shape}" if tensors else f"a {type(first).__name__}"
    raise OnnxError(
        f"{path} makes {made} of {n} images, expected float32 or float16 embeddings ({n}, D): "
        "export the network without what follows them"
    )


def _are_rows(value: Any, count: int) -> bool:
    """Whether these are (count, D) or (count, D, 1, 1) numbers."""
    return (
        isinstance(value, np.ndarray)
        and value.dtype in (np.float32, np.float16)
        and value.ndim >= 2
        and len(value) == count
        and value.size == count * value.shape[1] > 0
    )


def _gives(rows: np.ndarray) -> tuple[Any, Any]:
    return next(both for both in _DTYPES.values() if both[1] == rows.dtype)


def _filled(images: Tensor, count: int) -> Tensor:
    """`count` images, the last one again and again where there are fewer."""
    missing = count - len(images)
    return torch.cat([images, images[-1:].expand(missing, -1, -1, -1)]) if missing else images


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


def _only_input(path: Path, inputs: list[Described]) -> Described:
    """The file's input, where it may be one of images."""
    if len(inputs) != 1:
        names = ", ".join(node.name for node in inputs)
        raise OnnxError(f"{path} has {len(inputs)} inputs, {names}: expected one, of images")
    (node,) = inputs
    called = f"{path}: its input {node.name} is {node.type} {node.shape}"
    if node.type not in _TAKES:
        raise OnnxError(f"{called}, expected float32, float16 or uint8: export it so")
    if len(node.shape) != 4:
        without = ", without one for the batch" if len(node.shape) == 3 else ""
        raise OnnxError(
            f"{called}{without}; expected four axes, (batch, 3, height, width) or (batch, height, "
            f"width, 3). {_FREE_BATCH}"
        )
    return node


def _check_shape(file: OnnxFile, wanted: Input) -> None:
    node = file.images
    _, *shape = node.shape
    as_pixels = wanted.range == (0, 255) and (wanted.mean, wanted.std) == (0, 1)
    if node.type == "tensor(uint8)" and not as_pixels:
        raise OnnxError(
            f"{file.path}: its input {node.name} is uint8, and it would be given {wanted}: say "
            "0..255 and no mean in a tool's --onnx-input"
        )
    expected = wanted.shape(0)[1:]
    if any(isinstance(n, int) and n > 0 and n != m for n, m in zip(shape, expected)):
        raise OnnxError(
            f"{file.path}: its input {node.name} is {node.type} {node.shape}, and it would be "
            f"given {wanted}, (batch, {', '.join(map(str, expected))}). {_remedy(shape)}"
        )


def _remedy(shape: list[Any]) -> str:
    """What would fit a file whose images are of this shape, if anything would."""
    for layout, channels, sides in (("nchw", shape[0], shape[1:]), ("nhwc", shape[2], shape[:2])):
        sizes = sorted({side for side in sides if isinstance(side, int)})
        if channels == 3 and len(sizes) <= 1:
            setting = "".join(f" distill.input.size={side}" for side in sizes)
            option = ",".join(map(str, [layout, *sizes]))
            return (
                f"Set distill.input.layout={layout}{setting} in training, or say {option} in a "
                "tool's --onnx-input"
            )
    return "Expected three channels, and height and width alike"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
