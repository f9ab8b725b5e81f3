"""Trained weights on the disk: one of our checkpoints, or a file of a backbone's alone."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from models.arcface_torch import MAGFACE_PREFIXES, recognize, require_finite, split_prefix
from training.distributed import World, together
from training.saving.files import faults, newest

_SUFFIXES = (".pth", ".pt", ".safetensors")
_BACKBONE = "backbone."
_NAMED = 6  # tensors that a line names


class WeightsError(ValueError):
    """Weights that cannot be taken: says what was found, what was expected and how to mend it."""


@dataclass(frozen=True)
class Backbone:
    """What a file or checkpoint holds of a backbone."""

    tensors: dict[str, Tensor]  # by name, on the CPU, without a prefix
    notes: tuple[str, ...] = ()  # what was changed, and what of the file is not used


def find_weights(given: str | Path, world: World) -> Path:
    """A checkpoint's folder whose checksums hold, or a file of weights; call it on every rank.

    Of a run's folder it is the newest checkpoint. Raises WeightsError, on every rank, where there
    is neither.
    """
    path = together(lambda: _find(Path(given)))
    together(lambda: _require_whole(path, world))
    return path


def tensor_shapes(checkpoint: Path) -> dict[str, torch.Size]:
    """The names and shapes of all tensors in a checkpoint."""
    saved = dcp.FileSystemReader(str(checkpoint)).read_metadata().state_dict_metadata
    return {
        name: entry.size
        for name, entry in saved.items()
        if isinstance(entry, TensorStorageMetadata)
    }


def read_backbone(path: Path) -> Backbone:
    """The backbone that `path` holds; `path` is from `find_weights`; call it on every rank.

    Raises WeightsError, on every rank, for a file that holds none, for one of which nothing says
    which pixels it takes, and for values that are not finite.
    """
    if path.is_file():
        return together(lambda: _read_file(path))
    saved = dcp.FileSystemReader(str(path)).read_metadata().state_dict_metadata
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in saved.items()
        if name.startswith(_BACKBONE) and isinstance(entry, TensorStorageMetadata)
    }
    dcp.load(tensors, checkpoint_id=str(path))
    backbone = {name.removeprefix(_BACKBONE): tensor for name, tensor in tensors.items()}
    together(lambda: _require_finite(backbone, path))
    return Backbone(backbone)


def some(names: Sequence[str], *, between: str = ", ") -> str:
    """The first names of a list, and how many more there are."""
    more = f"{between}and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return between.join(names[:_NAMED]) + more


def _find(path: Path) -> Path:
    if path.is_file() and path.suffix in _SUFFIXES:
        return path
    if (path / ".metadata").is_file():
        return path
    found = newest(path)
    if found is None:
        there = "is there, but holds no checkpoint" if path.exists() else "does not exist"
        raise WeightsError(
            f"{path} {there}: expected a checkpoint (RUN/checkpoints/step_…), the folder of a run, "
            f"or a file of weights ({', '.join(_SUFFIXES)})"
        )
    return found


def _require_whole(path: Path, world: World) -> None:
    """Each rank checks a share of the files."""
    if path.is_dir():
        found = faults(path, rank=world.rank, world_size=world.world_size)
        if found:
            raise WeightsError(
                f"{path} is damaged: {'; '.join(found)}. Restore it from a copy, or name another"
            )


def _read_file(path: Path) -> Backbone:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError as error:
        raise WeightsError(f"{path} needs safetensors: pip install safetensors") from error
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise WeightsError(f"{path} cannot be read as weights: {reason}") from error
    named = content.items() if isinstance(content, dict) else ()
    tensors = {name: tensor for name, tensor in named if isinstance(tensor, Tensor)}
    if not tensors:
        found = f"a dict of {', '.join(map(str, content))}" if named else type(content).__name__
        raise WeightsError(
            f"{path} holds {found}: expected the state dict of a backbone alone, tensors by name. "
            "Checkpoints of arcface_torch are for tools/import_arcface_torch.py"
        )
    backbone = _take_names(tensors, path)
    _require_finite(backbone.tensors, path)
    return backbone


def _take_names(tensors: dict[str, Tensor], path: Path) -> Backbone:
    """The backbone of an IResNet; of another network, or of a part of one, all there is."""
    try:
        prefix, own = split_prefix(tensors)
    except ValueError:
        return Backbone(tensors)
    try:
        found = recognize(tensors)
    except ValueError as error:
        if prefix in MAGFACE_PREFIXES:  # a part of MagFace's would take other pixels
            raise WeightsError(f"{path}: {error}") from error
        unused = [name for name in tensors if not name.startswith(prefix)]
        # It is no whole network, but what there is may still fit.
        return Backbone(own, _not_used(unused))
    notes = list(_not_used(found.unused))
    if found.magface:
        notes.append(
            "recognized as MagFace's by its head: the first convolution and BatchNorms were "
            "changed to take RGB in [-1, 1]"
        )
    return Backbone(found.state, tuple(notes))


def _not_used(names: Sequence[str]) -> tuple[str, ...]:
    return (f"not used: {some(names)}",) if names else ()


def _require_finite(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        require_finite(tensors)
    except ValueError as error:
        raise WeightsError(f"{path}: {error}") from error
