"""The files that arcface_torch leaves in a run's folder, and whose each is.

model.pt, backbone.pth         the backbone's state dict
checkpoint_gpu_{r}.pt          all of a rank: backbone, its rows of the centers, one SGD
rank_{r}_softmax_weight.pt     older versions' rows of rank r
rank_{r}_softmax_weight_mom.pt     and their momentum
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from training.arcface_torch.weights import ArcFaceTorchError
from training.saving.weight_file import WeightsError, load_content

_RANK_FILE = re.compile(r"checkpoint_gpu_(\d+)\.pt")
_OLD_FILE = re.compile(r"rank_(\d+)_softmax_weight(_mom)?\.pt")
_BACKBONE_FILES = ("model.pt", "backbone.pth")


def files_of(sources: Iterable[Path]) -> Iterator[Path]:
    """The files that are named, and those of arcface_torch in the folders that are.

    Raises ArcFaceTorchError for what is not there, and a folder without such files.
    """
    for source in sources:
        if not source.exists():
            raise ArcFaceTorchError(f"{source} does not exist: name files or a folder of them")
        if not source.is_dir():
            yield source
            continue
        names = (_RANK_FILE, _OLD_FILE)
        found = [
            path
            for path in sorted(source.iterdir())
            if path.name in _BACKBONE_FILES or any(name.fullmatch(path.name) for name in names)
        ]
        if not found:
            raise ArcFaceTorchError(
                f"{source} holds no file of arcface_torch: expected model.pt, backbone.pth, "
                "checkpoint_gpu_…pt or rank_…_softmax_weight.pt"
            )
        yield from found


def load(path: Path) -> Tensor | dict[str, Any]:
    """What a file holds, on the CPU; no code in it runs.

    Raises ArcFaceTorchError for a file that cannot be read, needs code to be run, or holds neither
    a tensor nor a dict.
    """
    try:
        content = load_content(path)
    except WeightsError as error:
        raise ArcFaceTorchError(str(error)) from error
    if isinstance(content, (Tensor, dict)):
        return content
    raise ArcFaceTorchError(
        f"{path} holds a {type(content).__name__}: expected a state dict, a checkpoint or rows"
    )


def rank_of_checkpoint(path: Path) -> int:
    """The r of checkpoint_gpu_{r}.pt. Raises ArcFaceTorchError for another name."""
    if match := _RANK_FILE.fullmatch(path.name):
        _require_name_as_saved(path)
        return int(match[1])
    raise ArcFaceTorchError(
        f"{path} is a rank's checkpoint, but which rank's only its name tells: expected "
        "checkpoint_gpu_RANK.pt"
    )


def rank_of_rows(path: Path) -> tuple[int, bool]:
    """The r of rank_{r}_softmax_weight.pt, and whether it holds their momentum.

    Raises ArcFaceTorchError for another name.
    """
    if match := _OLD_FILE.fullmatch(path.name):
        _require_name_as_saved(path)
        return int(match[1]), match[2] is not None
    raise ArcFaceTorchError(
        f"{path} holds one tensor, but whose only its name tells: expected "
        "rank_RANK_softmax_weight.pt or rank_RANK_softmax_weight_mom.pt"
    )


def _require_name_as_saved(path: Path) -> None:
    """Raise ArcFaceTorchError where a rank's file was renamed to another rank's.

    Nothing in the file tells the rank, but torch.save calls the archive as it called the file.
    """
    if not zipfile.is_zipfile(path):  # of torch before 1.6
        return
    with zipfile.ZipFile(path) as archive:
        saved = f"{archive.namelist()[0].partition('/')[0]}.pt"
    a_ranks = _RANK_FILE.fullmatch(saved) or _OLD_FILE.fullmatch(saved)
    if a_ranks and saved != path.name:
        raise ArcFaceTorchError(
            f"{path} was saved as {saved}: expected the name that it had, which tells whose rows "
            "these are. Rename it back"
        )
