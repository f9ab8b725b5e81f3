"""A training state from the files of arcface_torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from facestream import UserError
from models.recognize import recognize, require_finite
from training.arcface_torch.files import files_of, load, rank_of_checkpoint, rank_of_rows
from training.arcface_torch.rank_file import RankFile, is_rank_file
from training.arcface_torch.shards import add, join, require_one_run
from training.arcface_torch.weights import ArcFaceTorchError, Weights
from training.saving.weight_file import WeightsError, find_state_dict, some
from training.weights.head_file import read_head


def read_arcface_torch(
    sources: Sequence[Path], *, num_classes: int | None = None, head: str = ""
) -> Weights:
    """Read files, or folders of them, of one run.

    Args:
        num_classes: C, if it is to be checked. The ranks tell theirs, but not whether one came
            after the last.
        head: FILE or FILE:KEY of centers that are in none of arcface_torch's files; see
            `read_head`.

    Raises:
        ArcFaceTorchError: for a file that is none of these or has code in it, a network that is
            none of ours, a rank that is missing, and files of different runs.
    """
    backbones: dict[Path, Mapping[str, Tensor]] = {}
    ranks: dict[int, RankFile] = {}
    rows: dict[int, Tensor] = {}
    velocity: dict[int, Tensor] = {}
    beside: list[str] = []
    for path in files_of(sources):
        content = load(path)
        if isinstance(content, Tensor):
            rank, is_momentum = rank_of_rows(path)
            add(velocity if is_momentum else rows, rank, content, path)
        elif is_rank_file(content):
            add(ranks, rank_of_checkpoint(path), RankFile.of(content, path), path)
        else:
            backbones[path], others = _state_dict(content, path)
            beside += others
    if ranks and (rows or velocity):
        raise ArcFaceTorchError(
            "found checkpoint_gpu files and rank_…_softmax_weight files: they are of different "
            "versions, name those of one run"
        )
    for rank, file in ranks.items():
        rows[rank] = file.centers
        if (momentum := file.center_momentum()) is not None:
            velocity[rank] = momentum
    centers = join(rows, "the centers", num_classes=num_classes)
    notes = []
    if ranks:
        notes = require_one_run(ranks)
        first = Path("checkpoint_gpu_0.pt")
        own, _ = _state_dict(ranks[0].backbone, first)
        backbones = {first: own} | backbones
    weights, unused = _one_backbone(backbones)
    weights.notes += notes
    if head and centers is not None:
        raise ArcFaceTorchError(f"found centers in these files and in --head {head}: name one")
    if head:
        centers, name = _read_head(head, weights, num_classes)
        unused = [key for key in unused if not f".{name}".endswith(f".{key}")]
    if unused or beside:
        weights.notes.append(f"not used: {some(list(dict.fromkeys([*beside, *unused])))}")
    if centers is not None:
        weights.ranks = len(rows)
        _add_head(weights, centers, velocity)
    if ranks:
        _add_moment(weights, ranks[0])
    else:
        weights.notes.append("momentum of the backbone: in none of these files, it starts at zero")
    return weights


def _add_moment(weights: Weights, file: RankFile) -> None:
    weights.step, weights.epoch = file.step, file.epoch
    weights.optimization = file.optimization()
    weights.momentum, why = file.backbone_momentum(weights.architecture)
    if why:
        weights.notes.append(f"momentum of the backbone: {why}; it starts at zero")


def _state_dict(content: dict[str, Any], path: Path) -> tuple[Mapping[str, Tensor], list[str]]:
    """A backbone's, alone or in anyone's checkpoint; and what else has tensors there."""
    try:
        return find_state_dict(content, path)
    except WeightsError as error:
        raise ArcFaceTorchError(str(error)) from error


def _read_head(given: str, weights: Weights, num_classes: int | None) -> tuple[Tensor, str]:
    """The centers, and what they are called in their file."""
    width = weights.architecture.embedding_dim
    try:
        head = read_head(given, embedding_dim=width, num_classes=num_classes)
    except WeightsError as error:
        raise ArcFaceTorchError(str(error)) from error
    turned = f", turned from ({width}, C)" if head.transposed else ""
    weights.notes.append(f"head: {head.key or 'the one tensor'} of --head {given}{turned}")
    return head.centers, head.key


def _one_backbone(
    backbones: Mapping[Path, Mapping[str, Tensor]],
) -> tuple[Weights, list[str]]:
    """The first of them, which the others must be equal to; and what is not used of it."""
    if not backbones:
        raise ArcFaceTorchError(
            "found no backbone: name model.pt, backbone.pth or checkpoint_gpu_0.pt, too"
        )
    (first, state), *others = backbones.items()
    try:
        found = recognize(state)
        require_finite(found.state)
    except ValueError as error:
        alone = len(state) < 3 and all(tensor.ndim == 2 for tensor in state.values())
        hint = f". A head alone is named by --head {first}" if alone else ""
        raise ArcFaceTorchError(f"{first}: {error}{hint}") from error
    for path, other in others:
        if other.keys() != state.keys() or any(
            other[key].dtype != value.dtype or not torch.equal(other[key], value)
            for key, value in state.items()
        ):
            raise ArcFaceTorchError(
                f"{path} and {first} are different backbones: name the files of one run"
            )
    weights = Weights(found.architecture, found.state)
    if found.prefix:
        weights.notes.append(f"names: the prefix {found.prefix} was taken off")
    if found.magface:
        weights.notes.append(
            "MagFace: its first convolution and BatchNorms were changed to take RGB in [-1, 1]; "
            "embeddings are its own but for what the border pixels add"
        )
    return weights, list(found.unused)


def _add_head(weights: Weights, centers: Tensor, velocity: Mapping[int, Tensor]) -> None:
    width = weights.architecture.embedding_dim
    if centers.shape[1] != width:
        raise ArcFaceTorchError(
            f"the centers have {centers.shape[1]} features, the backbone's embeddings {width}: "
            "these are of different runs"
        )
    try:
        require_finite({"the centers": centers})
    except UserError as error:
        raise ArcFaceTorchError(str(error)) from error
    weights.centers = centers
    if not velocity:
        weights.notes.append(
            "momentum of the centers: not of all of them in these files, it starts at zero"
        )
        return
    weights.velocity = join(velocity, "the momenta of the centers", num_classes=len(centers))
