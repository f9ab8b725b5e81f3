"""Saved weights, whatever they are in: a run, one of its checkpoints, or a file of a backbone's.

RUN, RUN@best, RUN@STEP          a run's newest checkpoint, its best one, that of a step
RUN/checkpoints/step_…           a checkpoint
.pth, .pt, .safetensors          a file, whoever saved it
.onnx                            the same, where it is of an IResNet or MobileFaceNet
a folder of arcface_torch's      its model.pt, or the backbone in its first rank's file
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from facestream import UserError
from heads.rows.stored import Stored, in_float32
from models import Architecture, is_network
from models.lora import FACTORS, merged_tensors
from models.recognize import Recognized, recognize
from pipeline.named_path import MALFORMED
from training.config import Config, ConfigError
from training.distributed import require_agreement, together
from training.saving import files
from training.saving.metadata import FILE, load_state, read_metadata
from training.saving.names import BACKBONE, SCALES, under
from training.saving.weight_file import (
    ONNX,
    SUFFIXES,
    Backbone,
    WeightsError,
    read_weight_file,
    require_finite_weights,
)
from training.weights.onnx_import.importing import import_onnx

T = TypeVar("T")

# What its backbone is in, the last state of it first. Its centers are tools/import_arcface_torch's.
_OF_ARCFACE_TORCH = ("checkpoint_gpu_0.pt", "model.pt", "backbone.pth")


def open_weights(given: str | Path, *, checked: bool = True) -> SavedCheckpoint | SavedFile:
    """Find out what `given` stands for.

    Where there is a process group, call it on every rank of that, and what is asked of the answer,
    too: errors are raised on all.

    Args:
        checked: whether `require_whole` is called of a checkpoint; until it is, nothing but what it
            is may be asked.

    Raises:
        WeightsError: where nothing is there, or it is damaged.
        CheckpointError: where a run does not have the checkpoint that is asked for, the disk does
            not give it, or a newer version saved it in another format.
        UserError: where the ranks find different ones.
    """
    path, chosen = _on_all(lambda: _find(str(given)))
    if dist.is_initialized():  # of a file, other questions are collective than of a checkpoint
        require_agreement({"the checkpoint or file of weights to read": path.name})
    if path.is_file():
        return SavedFile(path, chosen)
    saved = SavedCheckpoint(path, chosen)
    if checked:
        saved.require_whole()
    return saved


@dataclass(frozen=True)
class SavedCheckpoint:
    """A checkpoint's folder.

    Attributes:
        chosen: which of a run's it is and why, for the log; empty where it was named itself.
    """

    path: Path
    chosen: str

    def require_whole(self) -> None:
        """Compare its checksums, each rank those of a share of its files; as `open_weights`."""
        _on_all(lambda: _require_whole(self.path))

    @cached_property
    def config(self) -> Config:
        """The configuration it was saved with. Raises WeightsError where that is not there."""
        return self._saved_with[0]

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """Which checkpoint it is, and what of its configuration is of another version."""
        return (*([self.chosen] if self.chosen else []), *self._saved_with[1])

    @cached_property
    def about(self) -> dict[str, Any]:
        """What about.json says: step, facts, versions, scores."""
        return _on_all(lambda: files.read_about(self.path))

    @property
    def architecture(self) -> Architecture:
        """What its backbone is, by its configuration."""
        return self.config.architecture

    def shapes(self) -> dict[str, torch.Size]:
        """Of what `tensors` gives, by the names of training/saving/names.py."""
        saved = self._tensors_saved.items()
        hidden = {name for name, _ in saved if _is_factor(name)} | {*SCALES.values()}
        return {name: entry.size for name, entry in saved if name not in hidden}

    def tensors(self, *sections: str) -> dict[str, Tensor]:
        """Its tensors of some sections, whole and on the CPU, by name.

        Low-rank updates are merged into the backbone's weights: the state that learned them is for
        the run itself to read. Rows of the head that are kept in fewer bits come in float32.
        """
        prefixes = tuple(f"{section}." for section in sections)
        tensors = {
            name: torch.empty(entry.size, dtype=entry.properties.dtype)
            for name, entry in self._tensors_saved.items()
            if name.startswith(prefixes)
        }
        load_state(tensors, self.path, alone=not dist.is_initialized())
        for values, scales in SCALES.items():
            if values in tensors:
                tensors[values] = in_float32(Stored(tensors[values], tensors.pop(scales, None)))
        if not any(map(_is_factor, tensors)):
            return tensors
        merged = merged_tensors(tensors, scale=self.config.model.lora_scale)
        return {name: tensor for name, tensor in merged.items() if not _is_factor(name)}

    def backbone(self) -> Backbone:
        """The backbone's tensors, which are finite. Raises WeightsError."""
        tensors = under(BACKBONE, self.tensors(BACKBONE))
        _on_all(lambda: require_finite_weights(tensors, self.path))
        return Backbone(tensors)

    def network(self) -> nn.Module:
        """The backbone as a network, on the CPU. Raises WeightsError where it is another one."""
        network = _on_all(self.architecture.create)
        _fill(network, self.backbone().tensors, self.path, self.architecture.name)
        return network

    @cached_property
    def _saved_with(self) -> tuple[Config, tuple[str, ...]]:
        return _on_all(lambda: _read_config(self.path))

    @cached_property
    def _metadata(self) -> Metadata:
        return _on_all(lambda: read_metadata(self.path))

    @property
    def _tensors_saved(self) -> dict[str, TensorStorageMetadata]:
        return {
            name: entry
            for name, entry in self._metadata.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata)
        }


@dataclass(frozen=True)
class SavedFile:
    """A file of a backbone's weights, read once; it has no configuration.

    Attributes:
        chosen: which of a folder's it is, for the log; empty where it was named itself.
    """

    path: Path
    chosen: str = ""

    @property
    def notes(self) -> tuple[str, ...]:
        """Which file it is, what was changed of the weights, and what of the file is not used."""
        return (*([self.chosen] if self.chosen else []), *self.backbone().notes)

    @property
    def architecture(self) -> Architecture:
        """What its backbone is, by its names and shapes. Raises WeightsError."""
        return self._recognized.architecture

    def shapes(self) -> dict[str, torch.Size]:
        """Of its tensors, by the names of training/saving/names.py."""
        return {name: tensor.shape for name, tensor in self.tensors(BACKBONE).items()}

    def tensors(self, *sections: str) -> dict[str, Tensor]:
        """Its tensors of some sections, of which it has the backbone's alone."""
        wanted = self.backbone().tensors if BACKBONE in sections else {}
        return {f"{BACKBONE}.{name}": tensor for name, tensor in wanted.items()}

    def backbone(self) -> Backbone:
        """The backbone's tensors, which are finite. Raises WeightsError."""
        return self._backbone

    def network(self) -> nn.Module:
        """The backbone as a network, on the CPU. Raises WeightsError where it is none of ours."""
        network = self._recognized.architecture.create()
        network.load_state_dict(self._recognized.state)
        return network

    @cached_property
    def _backbone(self) -> Backbone:
        read = _read_onnx if self.path.suffix == ONNX else read_weight_file
        return _on_all(lambda: read(self.path))

    @cached_property
    def _recognized(self) -> Recognized:
        tensors = self.backbone().tensors
        return _on_all(lambda: _recognize(tensors, self.path))


def _is_factor(name: str) -> bool:
    """Of a low-rank update, or of its momentum."""
    return any(factor in name.split(".") for factor in FACTORS)


def _read_onnx(path: Path) -> Backbone:
    found = import_onnx(path)
    return Backbone(found.tensors, found.notes, found.unfolded)


def _on_all(work: Callable[[], T]) -> T:
    return together(work) if dist.is_initialized() else work()


def _find(given: str) -> tuple[Path, str]:
    """A checkpoint's folder or a file; and which of a run's it is, in words."""
    path, choice = files.split_choice(given)
    if choice:
        found = files.choose(path, choice)
        about, verified = files.read_about(found), ""
        if about["accuracy"] is not None:
            compared = [about["scores"][name] for name in about["compared_by"]]
            figures = sorted({files.main_figure(scores)[0] for scores in compared})
            verified = f", with a mean {' and '.join(figures)} of {about['accuracy']:.4f}"
        return found, f"{given}: {found.name}{verified}"
    if path.is_file() and path.suffix in SUFFIXES:
        return path, ""
    for name in _OF_ARCFACE_TORCH:
        if (path / name).is_file():
            return path / name, f"{given}: the backbone of {name}"
    if (path / FILE).is_file():
        return path, ""
    found = files.newest(path)
    if found is None:
        there = "is there, but holds no checkpoint" if path.exists() else "does not exist"
        raise WeightsError(
            f"{path} {there}: expected a checkpoint (RUN/checkpoints/step_…), the folder of a run, "
            f"RUN@best, RUN@STEP, or a file of weights ({', '.join(SUFFIXES)})"
        )
    return found, f"{given}: {found.name}, its newest checkpoint"


def _require_whole(path: Path) -> None:
    """And in a format that is known; each rank checks a share of the files."""
    rank, world_size = 0, 1
    if dist.is_initialized():
        rank, world_size = dist.get_rank(), dist.get_world_size()
    found = files.faults(path, rank=rank, world_size=world_size)
    if found:
        raise WeightsError(
            f"{path} is damaged: {'; '.join(found)}. Restore it from a copy, or name another"
        )
    files.read_about(path)  # which refuses a newer format


def _read_config(path: Path) -> tuple[Config, tuple[str, ...]]:
    content = files.read(path / "config.json")
    try:
        values = json.loads(content or b"")
        _require_known_network(values.get("model", {}).get("name"))
        return Config.from_dict(values)
    except ConfigError as error:
        raise WeightsError(f"{path / 'config.json'}: {error}") from error
    except MALFORMED as error:
        raise WeightsError(
            f"{path} has no readable config.json ({type(error).__name__}: {error}): expected a "
            "checkpoint's own folder, RUN/checkpoints/step_…"
        ) from error


def _require_known_network(name: str | None) -> None:
    """One of its user's own is known where the file that registers it was run: none is run here."""
    if name is not None and not is_network(name):
        raise ConfigError(
            f"model.name={name} is not known here: give --config FILE, the configuration file that "
            "registers it; to train_dist.py, a configuration that does. See docs/extending.md"
        )


def _fill(network: nn.Module, tensors: Mapping[str, Tensor], path: Path, name: str) -> None:
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        brief = " ".join(line.strip() for line in str(error).splitlines()[:2])[:200]
        raise WeightsError(
            f"{path} does not hold the {name} that its config.json speaks of: {brief}. Name "
            "another checkpoint"
        ) from error


def _recognize(tensors: Mapping[str, Tensor], path: Path) -> Recognized:
    try:
        return recognize(tensors)
    except UserError as error:
        raise WeightsError(f"{path}: {error}") from error
