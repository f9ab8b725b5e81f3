"""The frozen network that a student is distilled from: saved weights of any kind, an ONNX file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from facestream import UserError
from models.input import Input
from training.config import Config
from training.distributed import together
from training.frozen.model import ONNX, digest_of_weights, open_saved, run_onnx
from training.frozen.onnx_file import digest_of_file
from training.frozen.onnx_network import open_onnx
from training.named_files import check_named_files
from training.saving.reading import SavedCheckpoint, SavedFile, open_weights
from training.step.precision import Precision


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
    if given.endswith(ONNX):
        opened = run_onnx(open_onnx(Path(given), device=device), wanted)
    else:
        saved, dtype = _saved(given, config), precision.compute_dtype
        opened = open_saved(saved, given, device=device, dtype=dtype, folded=False, wanted=wanted)
    return Teacher(
        opened.embed, opened.embedding_dim, fingerprint=_fingerprint(opened.digest, config)
    )


def name_teacher(config: Config) -> str:
    """What `config.distill.teacher` stands for: itself, or which checkpoint of the run it names.

    Call it on every rank; raises as `load_teacher`.
    """
    given = _given(config)
    if given.endswith(ONNX):
        return given
    saved = open_weights(given, checked=False)
    return (isinstance(saved, SavedCheckpoint) and saved.chosen) or given


def fingerprint_teacher(config: Config) -> str:
    """What `load_teacher` would give as fingerprint; call it on every rank.

    An ONNX file's is that of its bytes and needs no onnxruntime. Any other's is that of the
    weights, so a checkpoint and a state dict of the same network have the same one.
    """
    given = _given(config)
    if given.endswith(ONNX):
        return _fingerprint(digest_of_file(Path(given)), config)
    return _fingerprint(digest_of_weights(_saved(given, config).network()), config)


def _fingerprint(digest: str, config: Config) -> str:
    """Of the weights, and of the pixels that they are given where those are not the usual ones."""
    wanted = config.teacher_input
    if wanted == Input(size=config.data.image_size):
        return digest
    return hashlib.blake2b(f"{digest} {wanted!r}".encode(), digest_size=8).hexdigest()


def _given(config: Config) -> str:
    together(lambda: check_named_files(config, "distill.teacher"))
    return config.distill.teacher


def _saved(path: str, config: Config) -> SavedCheckpoint | SavedFile:
    """A network of ours, in whatever it was saved in, where it fits what the run gives it."""
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
    return saved
