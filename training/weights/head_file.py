"""A head saved apart from its backbone, or beside it, as a row for each class.

Others save (C, D) or (D, C): arcface_torch's and CVLface's PartialFC `weight` (C, D), ElasticFace's
NNNheader.pth and AdaFace's `head.kernel` (D, C), MagFace's `module.fc.weight` (D, C).
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from models.recognize import own_names
from training.saving.weight_file import WeightsError, load_content, some, state_dicts


class Head(NamedTuple):
    """Centers (C, D) float32, and how they were found."""

    centers: Tensor
    key: str  # in the file; empty where it holds one tensor alone
    transposed: bool  # it was (D, C)


def split_key(given: str) -> tuple[Path, str]:
    """FILE or FILE:KEY to both; the key may be empty."""
    path, colon, key = given.rpartition(":")
    if not colon or Path(given).exists():
        return Path(given), ""
    return Path(path), key


def read_head(given: str, *, embedding_dim: int, num_classes: int | None = None) -> Head:
    """The head in FILE or FILE:KEY; the key may leave out what stands before it in nested dicts.

    Args:
        given: a file of safetensors or of torch.save, with any keys.
        embedding_dim: D, of the backbone's embeddings.
        num_classes: C, if it is known.

    Raises:
        WeightsError: for a file that holds none or several such, and for (D, D), of which nothing
            says whether a class is a row or a column.
    """
    path, key = split_key(given)
    if not path.is_file():
        raise WeightsError(f"--head {path} is no file: expected FILE or FILE:KEY")
    content = load_content(path)
    if isinstance(content, Tensor):
        return _by_class(content, path, "", embedding_dim, num_classes)
    tensors = {
        ".".join((*at, name)): tensor
        for at, named in state_dicts(content)
        for name, tensor in named.items()
    }
    of_backbone = own_names(tensors)
    there = {n: t for n, t in tensors.items() if t.ndim == 2 and n not in of_backbone}
    if key:
        chosen = [name for name in there if name == key or name.endswith(f".{key}")]
    else:
        chosen = [
            name
            for name, tensor in there.items()
            if _fits(tensor, embedding_dim, num_classes) and not _of_optimizer(name)
        ]
    if len(chosen) != 1:
        shapes = [f"{name} {tuple(there[name].shape)}" for name in chosen or there]
        found = f"{len(chosen)} heads" if chosen else f"no {key or 'head'}"
        raise WeightsError(
            f"--head {path} holds {found}, with {some(shapes) or 'no matrix'}: expected one of "
            f"(C, {embedding_dim}) or ({embedding_dim}, C). Name it, as in --head {path}:KEY"
        )
    return _by_class(there[chosen[0]], path, chosen[0], embedding_dim, num_classes)


def _fits(matrix: Tensor, embedding_dim: int, num_classes: int | None) -> bool:
    rows, columns = matrix.shape
    classes = rows if columns == embedding_dim else columns
    return embedding_dim in (rows, columns) and num_classes in (None, classes)


def _of_optimizer(name: str) -> bool:
    """Its buffers have the shapes of what they belong to."""
    return any("optim" in part for part in name.split("."))


def _by_class(
    weight: Tensor, path: Path, key: str, embedding_dim: int, num_classes: int | None
) -> Head:
    called = f"--head {path}{':' if key else ''}{key}"
    shape = tuple(weight.shape)
    if shape == (embedding_dim, embedding_dim):
        raise WeightsError(
            f"{called} is {shape}, as many classes as features: nothing says whether a class is a "
            "row or a column. Save it with a class in each row, torch.save(weight, "
            "'rank_0_softmax_weight.pt'), with weight.t().contiguous() where they are columns "
            "(MagFace, AdaFace, ElasticFace), and name that file as a SOURCE"
        )
    if len(shape) != 2 or embedding_dim not in shape:
        raise WeightsError(
            f"{called} is {shape}: expected (C, {embedding_dim}) or ({embedding_dim}, C), for the "
            "backbone's embeddings"
        )
    if not weight.is_floating_point() or 0 in shape:
        raise WeightsError(f"{called} is {shape} of {weight.dtype}: expected classes, as floats")
    transposed = shape[1] != embedding_dim
    centers = (weight.t() if transposed else weight).float().contiguous()
    if num_classes not in (None, len(centers)):
        raise WeightsError(f"{called} is of {len(centers)} classes, expected {num_classes}")
    return Head(centers, key, transposed)
