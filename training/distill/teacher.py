"""The frozen network that a student is distilled from: a checkpoint, a state dict, an ONNX file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException

from facestream import UserError
from models import Architecture, create_model
from models.input import Input
from training.config import Config
from training.distill.onnx_network import OnnxNetwork
from training.distributed import together
from training.named_files import check_named_files
from training.precision import Precision
from training.saving.metadata import load_state
from training.saving.settings import saved_network
from training.weights.source import WeightsError, load_content


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
        PathError, TeacherError, OnnxError: the file is missing, unreadable or of another network.
    """
    path, wanted = _path(config), config.teacher_input
    if _is_onnx(path):
        network: Callable[[Tensor], Tensor] = OnnxNetwork(path, wanted, device=device)
        digest, dtype = _file_digest(path), torch.float32
    else:
        frozen = _read_network(path, config).requires_grad_(False).eval()
        digest, dtype = _weights_digest(frozen), precision.compute_dtype
        network = frozen.to(device)

    @torch.no_grad()
    def embed(images: Tensor) -> Tensor:
        with precision.autocast(device):
            return network(wanted(images, dtype)).float()

    size = config.data.image_size
    black = torch.zeros((1, 3, size, size), dtype=torch.uint8, device=device)
    return Teacher(
        embed, embedding_dim=embed(black).shape[1], fingerprint=_fingerprint(digest, config)
    )


def fingerprint_teacher(config: Config) -> str:
    """What `load_teacher` would give as fingerprint; call it on every rank.

    An ONNX file's is that of its bytes and needs no onnxruntime. Any other's is that of the
    weights, so a checkpoint and a state dict of the same network have the same one.
    """
    path = _path(config)
    digest = _file_digest(path) if _is_onnx(path) else _weights_digest(_read_network(path, config))
    return _fingerprint(digest, config)


def _fingerprint(digest: str, config: Config) -> str:
    """Of the weights, and of the pixels that they are given where those are not the usual ones."""
    wanted = config.teacher_input
    if wanted == Input(size=config.data.image_size):
        return digest
    return hashlib.blake2b(f"{digest} {wanted!r}".encode(), digest_size=8).hexdigest()


def _path(config: Config) -> Path:
    together(lambda: check_named_files(config, "distill.teacher"))
    return Path(config.distill.teacher)


def _is_onnx(path: Path) -> bool:
    return path.suffix == ".onnx"


def _read_network(path: Path, config: Config) -> nn.Module:
    return _from_checkpoint(path, config) if path.is_dir() else _from_state_dict(path, config)


def _from_checkpoint(path: Path, config: Config) -> nn.Module:
    """The backbone of one of our checkpoints, built as the config.json in it says."""
    if config.distill.input:
        raise TeacherError(
            f"distill.input={config.distill.input} with distill.teacher={path}: expected none for "
            "a checkpoint of ours, which is given what it was trained on; set distill.input={}"
        )
    # Together, because a rank that fails alone would leave the others waiting in load_state.
    saved = together(lambda: _read_saved_network(path))
    if saved.image_size != config.data.image_size:
        raise TeacherError(
            f"distill.teacher={path} was trained on images of {saved.image_size} pixels, and "
            f"data.image_size={config.data.image_size}: expected the same size"
        )
    network = saved.create()
    try:
        # Fills the network's own tensors; optimizer and head stay unread.
        load_state({"backbone": network.state_dict()}, path)
    except CheckpointException as error:
        causes = sorted({_brief(cause) for cause, _ in error.failures.values()})
        raise TeacherError(
            f"distill.teacher={path} does not hold the {saved.name} that its config.json speaks "
            f"of: {'; '.join(causes)}. Name another checkpoint"
        ) from error
    return network


def _read_saved_network(path: Path) -> Architecture:
    try:
        return saved_network(path)
    except ValueError as error:
        raise TeacherError(
            f"distill.teacher={path} has no readable config.json ({error}): expected a "
            "checkpoint's own folder, RUN/checkpoints/step_…"
        ) from error


def _from_state_dict(path: Path, config: Config) -> nn.Module:
    """A network of the name in distill.model, with arcface_torch's weights."""
    name, dim, wanted = config.distill.model, config.model.embedding_dim, config.teacher_input
    if wanted.layout != "nchw" or wanted.size % 16:
        raise TeacherError(
            f"distill.input={config.distill.input} with distill.teacher={path}: {name} takes NCHW "
            "and a size that is a multiple of 16"
        )
    network = create_model(name, embedding_dim=dim, image_size=wanted.size)
    try:
        network.load_state_dict(load_content(path))
    except (WeightsError, RuntimeError, TypeError, AttributeError) as error:
        raise TeacherError(
            f"distill.teacher={path} does not fit distill.model={name} with embeddings of "
            f"model.embedding_dim={dim}: {_brief(error)}. Expected a state dict of that network "
            "alone, as arcface_torch saves it"
        ) from error
    return network


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


def _brief(error: BaseException) -> str:
    """The first two lines of a message in one: torch tells the cause in the second."""
    return " ".join(line.strip() for line in str(error).splitlines()[:2])[:200]
