"""The frozen network that a student is distilled from: saved weights of any kind, an ONNX file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from evaluation.embedding import on_pixels
from facestream import UserError
from models.input import Input
from training.config import Config
from training.distill.onnx_network import OnnxNetwork
from training.distributed import together
from training.named_files import check_named_files
from training.saving.reading import SavedCheckpoint, open_weights
from training.step.precision import Precision

_ONNX = ".onnx"


class TeacherError(UserError):
    """A teacher that cannot be loaded: says what was found, what was expected, how to mend it."""


@dataclass(frozen=True)
class Teacher:
    """A frozen network, the same whatever it was read from."""

    embed: Callable[[Tensor], Tensor]  # (B, 3, H, W) uint8 to (B, D) float32 without a gradient
    embedding_dim: int  # D
    fingerprint: str  # of its weights


def load_teacher(config: Config, *, device: torch.device, precision: Precision) -> Teacher:
    """Load what `config.distill` names onto a device; call it on every rank.

    A network of ours runs as the student does, in the compute dtype under autocast and with
    BatchNorm's running statistics; an ONNX file runs in float32. Images are given to it as
    `config.teacher_input` says.

    Raises:
        PathError, WeightsError, TeacherError, OnnxError: what is named is missing, unreadable, or
            of another network.
    """
    given, wanted = _given(config), config.teacher_input
    if given.endswith(_ONNX):
        network: Callable[[Tensor], Tensor] = OnnxNetwork(Path(given), wanted, device=device)
        digest, dtype = _file_digest(Path(given)), torch.float32
    else:
        frozen = _read_network(given, config).requires_grad_(False).eval()
        digest, dtype = _weights_digest(frozen), precision.compute_dtype
        network = frozen.to(device)

    embed = on_pixels(network, device=device, dtype=dtype, prepare=wanted)
    size = config.data.image_size
    black = torch.zeros((1, 3, size, size), dtype=torch.uint8, device=device)
    return Teacher(
        embed, embedding_dim=embed(black).shape[1], fingerprint=_fingerprint(digest, config)
    )


def name_teacher(config: Config) -> str:
    """What `config.distill.teacher` stands for: itself, or which checkpoint of the run it names.

    Call it on every rank; raises as `load_teacher`.
    """
    given = _given(config)
    if given.endswith(_ONNX):
        return given
    saved = open_weights(given, checked=False)
    return (isinstance(saved, SavedCheckpoint) and saved.chosen) or given


def fingerprint_teacher(config: Config) -> str:
    """What `load_teacher` would give as fingerprint; call it on every rank.

    An ONNX file's is that of its bytes and needs no onnxruntime. Any other's is that of the
    weights, so a checkpoint and a state dict of the same network have the same one.
    """
    given = _given(config)
    if given.endswith(_ONNX):
        return _fingerprint(_file_digest(Path(given)), config)
    return _fingerprint(_weights_digest(_read_network(given, config)), config)


def _fingerprint(digest: str, config: Config) -> str:
    """Of the weights, and of the pixels that they are given where those are not the usual ones."""
    wanted = config.teacher_input
    if wanted == Input(size=config.data.image_size):
        return digest
    return hashlib.blake2b(f"{digest} {wanted!r}".encode(), digest_size=8).hexdigest()


def _given(config: Config) -> str:
    together(lambda: check_named_files(config, "distill.teacher"))
    return config.distill.teacher


def _read_network(path: str, config: Config) -> nn.Module:
    """A network of ours, from whatever it was saved in, where it fits what the run gives it."""
    saved = open_weights(path)
    architecture, wanted = saved.architecture, config.teacher_input
    found = f"distill.teacher={path} is of {architecture.name}"
    if isinstance(saved, SavedCheckpoint) and config.distill.input:
        raise TeacherError(
            f"distill.input={config.distill.input} with distill.teacher={path}: expected none for "
            "a checkpoint of ours, which is given what it was trained on; set distill.input={}"
        )
    if config.distill.model not in ("", architecture.name):
        raise TeacherError(
            f"{found}: expected distill.model={config.distill.model}, or leave that out"
        )
    if wanted.layout != "nchw" or wanted.size != architecture.image_size:
        raise TeacherError(
            f"{found} for images of {architecture.image_size} pixels in NCHW, and it would be "
            f"given {wanted}: expected the same, set data.image_size or distill.input"
        )
    return saved.network()


def _weights_digest(network: nn.Module) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _file_digest(path: Path) -> str:
    """Of an ONNX file, and of the weights that torch's exporter may have put beside it."""
    digest = hashlib.blake2b(digest_size=8)
    for part in (path, path.with_name(f"{path.name}.data")):
        if part.is_file():
            with part.open("rb") as file:
                while block := file.read(1 << 24):
                    digest.update(block)
    return digest.hexdigest()
