"""Trained weights on the disk: one of our checkpoints, or a file of a backbone's alone."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from models.arcface_torch import recognize
from training.distributed import World, together
from training.saving.files import faults, newest

_SUFFIXES = (".pth", ".pt", ".safetensors")
_BACKBONE = "backbone."


class WeightsError(ValueError):
    """Weights that cannot be taken: says what was found, what was expected and how to mend it."""


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


def read_backbone(path: Path) -> dict[str, Tensor]:
    """The backbone's tensors by name, on the CPU; `path` is from `find_weights`; on every rank.

    Raises WeightsError, on every rank, for a file that holds none.
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
    return {name.removeprefix(_BACKBONE): tensor for name, tensor in tensors.items()}


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


def _read_file(path: Path) -> dict[str, Tensor]:
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
    try:
        return recognize(tensors).state  # without the prefixes that others put before names
    except ValueError:  # no whole network, but what there is may still fit
        return tensors
