"""arcface_torch's checkpoint files, of any number of ranks: read and written.

    model.pt, backbone.pth         the backbone's state dict
    checkpoint_gpu_{r}.pt          all of a rank: backbone, its rows of the centers, one SGD
    rank_{r}_softmax_weight.pt     older versions' rows of rank r
    rank_{r}_softmax_weight_mom.pt     and their momentum

Of C classes, rank r of w has C // w rows, and one more where r < C % w, in order.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from facestream import UserError
from models import Architecture
from models.recognize import recognize, require_finite
from training.saving.weight_file import WeightsError, find_state_dict, load_content, some
from training.weights.head_file import read_head

_RANK_FILE = re.compile(r"checkpoint_gpu_(\d+)\.pt")
_OLD_FILE = re.compile(r"rank_(\d+)_softmax_weight(_mom)?\.pt")
_BACKBONE_FILES = ("model.pt", "backbone.pth")
_IN_RANK_FILE = {
    "epoch",
    "global_step",
    "state_dict_backbone",
    "state_dict_softmax_fc",
    "state_optimizer",
}


class ArcFaceTorchError(UserError):
    """Files that cannot be taken over: says what was found, what was expected, how to mend it."""


@dataclass
class Weights:
    """A training state, whoever's format it was in; tensors are on the CPU."""

    architecture: Architecture
    backbone: dict[str, Tensor]  # state dict
    momentum: dict[str, Tensor] | None = None  # of its trained parameters; None: not known
    centers: Tensor | None = None  # (C, D)
    velocity: Tensor | None = None  # (C, D); None: not known
    step: int = 0
    notes: list[str] = field(default_factory=list)  # what was left out or changed, and why


def rows_of(num_classes: int, *, rank: int, world_size: int) -> int:
    """How many of C rows arcface_torch gives a rank."""
    return num_classes // world_size + (rank < num_classes % world_size)


def trained(network: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that have momentum, by name."""
    return {name: p for name, p in network.named_parameters() if p.requires_grad}


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
    ranks: dict[int, dict[str, Any]] = {}
    rows: dict[int, Tensor] = {}
    velocity: dict[int, Tensor] = {}
    beside: list[str] = []
    for path in _files(sources):
        content = _load(path)
        if isinstance(content, Tensor):
            rank, is_momentum = _old_name(path)
            _add(velocity if is_momentum else rows, rank, content, path)
        elif content.keys() >= _IN_RANK_FILE:
            _require_rank_file(content, path)
            _add(ranks, _rank_name(path), content, path)
        else:
            backbones[path], others = _state_dict(content, path)
            beside += others
    if ranks and (rows or velocity):
        raise ArcFaceTorchError(
            "found checkpoint_gpu files and rank_…_softmax_weight files: they are of different "
            "versions, name those of one run"
        )
    for rank, content in ranks.items():
        rows[rank] = _centers(content, rank)
        momentum = _center_momentum(content)
        # A version in between gave its optimizer a step's sampled rows, with no word of which.
        if momentum is not None and momentum.shape == rows[rank].shape:
            velocity[rank] = momentum
    centers = _join(rows, "the centers", num_classes=num_classes)
    if ranks:
        _require_one_moment(ranks)
        first = Path("checkpoint_gpu_0.pt")
        own, _ = _state_dict(ranks[0]["state_dict_backbone"], first)
        backbones = {first: own} | backbones
    weights, unused = _one_backbone(backbones)
    if head and centers is not None:
        raise ArcFaceTorchError(f"found centers in these files and in --head {head}: name one")
    if head:
        centers, name = _read_head(head, weights, num_classes)
        unused = [key for key in unused if not f".{name}".endswith(f".{key}")]
    if unused or beside:
        weights.notes.append(f"not used: {some(list(dict.fromkeys([*beside, *unused])))}")
    if centers is not None:
        _add_head(weights, centers, velocity)
    if ranks:
        weights.step = ranks[0]["global_step"]
        _add_momentum(weights, ranks[0])
    else:
        weights.notes.append("momentum of the backbone: in none of these files, it starts at zero")
    return weights


def write_arcface_torch(
    folder: Path,
    weights: Weights,
    *,
    world_size: int,
    epoch: int,
    rate: float,
    peak_rate: float,
    momentum: float,
    weight_decay: float,
) -> list[Path]:
    """Write model.pt and, where there are centers, what arcface_torch resumes `world_size` ranks
    from; returns the files.

    Args:
        epoch: epochs done, with which it resumes.
        rate: of the next step. Its scheduler multiplies the rate that it finds, so one of 0 stays
            0.
        peak_rate: what its schedule starts from, the highest.
        momentum, weight_decay: of its SGD.

    Raises:
        ArcFaceTorchError: where there are fewer classes than ranks.
    """
    num_classes = 0 if weights.centers is None else len(weights.centers)
    if 0 < num_classes < world_size:
        raise ArcFaceTorchError(
            f"{num_classes} classes for {world_size} ranks: expected fewer ranks"
        )
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "model.pt"]
    torch.save(weights.backbone, written[0])
    if weights.centers is None:
        return written
    network = weights.architecture.create()
    sizes = [rows_of(num_classes, rank=r, world_size=world_size) for r in range(world_size)]
    velocity = weights.velocity
    if velocity is None:
        velocity = torch.zeros_like(weights.centers)
    for rank, (rows, moved) in enumerate(zip(weights.centers.split(sizes), velocity.split(sizes))):
        centers = nn.Parameter(rows.clone())  # or the whole would be saved with every part
        sgd = torch.optim.SGD(
            [{"params": list(network.parameters())}, {"params": [centers]}],
            lr=rate,
            momentum=momentum,
            weight_decay=weight_decay,
        )
        for group in sgd.param_groups:
            group["initial_lr"] = peak_rate
        for name, parameter in trained(network).items() if weights.momentum else ():
            known = weights.momentum.get(name)  # none of what was frozen
            sgd.state[parameter]["momentum_buffer"] = (
                torch.zeros_like(parameter) if known is None else known
            )
        sgd.state[centers]["momentum_buffer"] = moved.clone()
        written.append(folder / f"checkpoint_gpu_{rank}.pt")
        torch.save(
            {
                "epoch": epoch,
                "global_step": weights.step,
                "state_dict_backbone": weights.backbone,
                "state_dict_softmax_fc": {"weight": centers.detach()},
                "state_optimizer": sgd.state_dict(),
                "state_lr_scheduler": {"last_epoch": weights.step, "_step_count": weights.step + 1},
            },
            written[-1],
        )
    return written


def _files(sources: Iterable[Path]) -> Iterator[Path]:
    for source in sources:
        if not source.exists():
            raise ArcFaceTorchError(f"{source} does not exist: name files or a folder of them")
        if source.is_file():
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


def _load(path: Path) -> Tensor | dict[str, Any]:
    try:
        content = load_content(path)
    except WeightsError as error:
        raise ArcFaceTorchError(str(error)) from error
    if isinstance(content, (Tensor, dict)):
        return content
    raise ArcFaceTorchError(
        f"{path} holds a {type(content).__name__}: expected a state dict, a checkpoint or rows"
    )


def _state_dict(content: dict[str, Any], path: Path) -> tuple[Mapping[str, Tensor], list[str]]:
    """A backbone's, alone or in anyone's checkpoint; and what else has tensors there."""
    try:
        return find_state_dict(content, path)
    except WeightsError as error:
        raise ArcFaceTorchError(str(error)) from error


def _require_rank_file(content: dict[str, Any], path: Path) -> None:
    optimizer, head = content["state_optimizer"], content["state_dict_softmax_fc"]
    state, groups = ({}, [])
    if isinstance(optimizer, dict):
        state, groups = optimizer.get("state"), optimizer.get("param_groups")
    wrong = {
        "epoch": not isinstance(content["epoch"], int),
        "global_step": not isinstance(content["global_step"], int),
        "state_dict_backbone": not isinstance(content["state_dict_backbone"], dict),
        "state_dict_softmax_fc": not isinstance(head, dict),
        "state_optimizer": not (
            isinstance(state, dict)
            and all(isinstance(one, dict) for one in state.values())
            and isinstance(groups, list)
            and groups
            and all(_has_numbers(group) for group in groups)
        ),
    }
    if any(wrong.values()):
        keys = ", ".join(key for key, is_wrong in wrong.items() if is_wrong)
        raise ArcFaceTorchError(
            f"{path}: its {keys} are not what arcface_torch saves there: expected the file as its "
            "train_v2.py wrote it. Of another, name its backbone's state dict alone"
        )


def _has_numbers(group: Any) -> bool:
    """Whether it is a group of an optimizer, with its parameters' numbers."""
    numbers = group.get("params") if isinstance(group, dict) else None
    return isinstance(numbers, list) and bool(numbers) and all(isinstance(n, int) for n in numbers)


def _rank_name(path: Path) -> int:
    if match := _RANK_FILE.fullmatch(path.name):
        return int(match[1])
    raise ArcFaceTorchError(
        f"{path} is a rank's checkpoint, but which rank's only its name tells: expected "
        "checkpoint_gpu_RANK.pt"
    )


def _old_name(path: Path) -> tuple[int, bool]:
    if match := _OLD_FILE.fullmatch(path.name):
        return int(match[1]), match[2] is not None
    raise ArcFaceTorchError(
        f"{path} holds one tensor, but whose only its name tells: expected "
        "rank_RANK_softmax_weight.pt or rank_RANK_softmax_weight_mom.pt"
    )


def _add(by_rank: dict[int, Any], rank: int, content: Any, path: Path) -> None:
    if rank in by_rank:
        raise ArcFaceTorchError(f"{path}: rank {rank} is there twice, name the files of one run")
    by_rank[rank] = content


def _join(
    parts: Mapping[int, Tensor], what: str, *, num_classes: int | None = None
) -> Tensor | None:
    """The ranks' rows, one after another."""
    if not parts:
        return None
    world_size = max(parts) + 1
    missing = [rank for rank in range(world_size) if rank not in parts]
    if missing:
        raise ArcFaceTorchError(
            f"{what} of rank {', '.join(map(str, missing))} of {world_size} are missing: name the "
            "files of all ranks"
        )
    shapes = [tuple(parts[rank].shape) for rank in range(world_size)]
    if any(len(shape) != 2 or shape[1] != shapes[0][1] for shape in shapes):
        raise ArcFaceTorchError(
            f"{what} of the ranks are {shapes}: expected (rows, D) with the same D, these are of "
            "different runs"
        )
    total = sum(shape[0] for shape in shapes)
    for rank, (rows, _) in enumerate(shapes):
        expected = rows_of(total, rank=rank, world_size=world_size)
        if rows != expected:
            raise ArcFaceTorchError(
                f"{what} of rank {rank} have {rows} rows, where {total} classes on {world_size} "
                f"ranks make {expected}: these are of different runs, or a last rank is missing"
            )
    if num_classes is not None and total != num_classes:
        raise ArcFaceTorchError(
            f"{what} of {world_size} ranks are {total}, expected {num_classes} classes: the files "
            "of the last ranks are missing, or these are of another run"
        )
    return torch.cat([parts[rank] for rank in range(world_size)])


def _require_one_moment(ranks: Mapping[int, dict[str, Any]]) -> None:
    moments = [(ranks[r]["epoch"], ranks[r]["global_step"]) for r in range(len(ranks))]
    for rank, moment in enumerate(moments):
        if moment != moments[0]:
            raise ArcFaceTorchError(
                f"rank {rank} is at epoch {moment[0]}, step {moment[1]}, rank 0 at epoch "
                f"{moments[0][0]}, step {moments[0][1]}: name the files of one run, saved together"
            )


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
    weights.velocity = _join(velocity, "the momenta of the centers", num_classes=len(centers))


def _centers(content: dict[str, Any], rank: int) -> Tensor:
    head = content["state_dict_softmax_fc"]
    if not isinstance(head.get("weight"), Tensor):
        keys = ", ".join(map(str, head)) or "nothing"
        raise ArcFaceTorchError(f"the head of rank {rank} has {keys}: expected PartialFC's weight")
    return head["weight"]


def _center_momentum(content: dict[str, Any]) -> Tensor | None:
    """Of the last parameter of its optimizer, where that is SGD."""
    optimizer = content["state_optimizer"]
    (last,) = optimizer["param_groups"][-1]["params"][-1:]
    return _buffer(optimizer["state"], last)


def _buffer(state: Mapping[int, dict[str, Any]], number: int) -> Tensor | None:
    """SGD's momentum of a parameter, where it has any."""
    found = state.get(number, {}).get("momentum_buffer")
    return found if isinstance(found, Tensor) else None


def _add_momentum(weights: Weights, content: dict[str, Any]) -> None:
    """The backbone's, whose parameters the optimizer numbers in the order of the module: that of
    the state dict is another where a sharded checkpoint was merged."""
    with torch.device("meta"):
        network = weights.architecture.create()
    names = [name for name, _ in network.named_parameters()]
    state = content["state_optimizer"]["state"]
    numbers = content["state_optimizer"]["param_groups"][0]["params"]
    buffers = {
        name: buffer
        for name, number in zip(names, numbers)
        if (buffer := _buffer(state, number)) is not None
    }
    expected = {name: p.shape for name, p in trained(network).items()}
    if len(names) == len(numbers) and expected == {n: b.shape for n, b in buffers.items()}:
        weights.momentum = buffers
    else:
        weights.notes.append(
            f"momentum of the backbone: of {len(expected)} parameters its optimizer has "
            f"{len(buffers)} such buffers, expected SGD's of all; it starts at zero"
        )
