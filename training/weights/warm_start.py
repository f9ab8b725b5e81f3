"""Starting from other weights (`run.init_from`): what fits is taken, the rest is new.

The backbone's tensors go by name and shape, the centers by person (identities.py); who is new
starts at the mean embedding of their images. A run that is resumed needs none of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from evaluation.embedding import decoder
from models.lora import FACTORS
from training.config import Config
from training.data import TrainingData
from training.distributed import World, from_main, together
from training.named_files import check_named_files
from training.saving.names import BACKBONE, CENTERS, under
from training.saving.reading import SavedCheckpoint, SavedFile, open_weights
from training.saving.weight_file import WeightsError, some
from training.step.backbone import unwrapped
from training.step.learning import create_network
from training.step.precision import Precision
from training.step.train_step import TrainStep
from training.weights.center_transfer import (
    aim_centers,
    centers_at,
    owned_rows,
    put_centers,
    take_centers,
)
from training.weights.identities import Identities, read_identities
from training.weights.mean_embeddings import IMAGES, mean_embeddings
from training.weights.statistics import measure_statistics, some_images

# Length of the centers that start at mean embeddings, where no trained ones say it. A new head's
# are drawn much shorter, and a step turns a center by its rate over the square of its length: what
# they had been started with was lost within a few steps.
_NORM = 1.0


def open_init_from(config: Config) -> SavedCheckpoint | SavedFile | None:
    """What `config.run.init_from` names, not yet checked; None where it names nothing. Call it on
    every rank.

    Raises:
        PathError: it is missing, or cannot be opened.
        WeightsError, CheckpointError, UserError: as `open_weights`.
    """
    if not config.run.init_from:
        return None
    together(lambda: check_named_files(config, "run.init_from"))
    return open_weights(config.run.init_from, checked=False)


def warm_start(
    config: Config,
    world: World,
    saved: SavedCheckpoint | SavedFile,
    *,
    step: TrainStep,
    data: TrainingData,
    precision: Precision,
) -> list[str]:
    """Put what `open_init_from` found into a step that has not begun; on every rank.

    Centers that start at mean embeddings are as long as trained ones are: on average as those of
    the saved head, or 1. The result is the same at any world size. Momentum stays zero, and the
    margin's running values stay those of a start.

    Returns:
        Lines for the log: what was taken and what was not.

    Raises:
        WeightsError: files are damaged, or no tensor of the backbone fits.
        IdentitiesError: it cannot be read whose the rows of its head are.
    """
    if isinstance(saved, SavedCheckpoint):  # of a file, reading it says so
        saved.require_whole()
    path, network, head = saved.path, unwrapped(step.backbone), step.head
    tensors, measured = _with_statistics(saved, config, data, world)
    _check_what_stays(network, tensors, saved)
    misfits = take_backbone(network, tensors, path=path)
    rows, how = match_rows(config, data, saved, num_classes=head.num_classes)
    known, norm = int((rows >= 0).sum()), _NORM
    held, width = saved.shapes().get(CENTERS, (0, 0))
    if width == head.centers.shape[1]:  # other people's, too, say how long centers are
        norm = take_centers(path, head, rows, held=held, world=world)
    lines = [
        f"backbone from {path}",
        *saved.notes,
        *measured,
        *misfits,
        f"{known} of {head.num_classes} centers {how}",
    ]
    if known == head.num_classes:
        return lines
    if misfits:
        return [*lines, "other centers start at random: the backbone was not taken whole"]
    classes, ours = np.flatnonzero(rows < 0), owned_rows(head)
    owned = slice(*np.searchsorted(classes, [ours.start, ours.stop]).tolist())
    directions = mean_embeddings(
        network,
        data.records,
        classes,
        owned=owned,
        subcenters=head.subcenters,
        embedding_dim=head.embedding_dim,
        image_size=config.data.image_size,
        world=world,
        precision=precision,
    )
    places = torch.from_numpy(classes[owned] - ours.start).to(world.device)
    aimed, untouched = aim_centers(
        centers_at(head, places), directions, embedding_dim=head.embedding_dim, norm=norm
    )
    put_centers(head, places, aimed)
    left = torch.tensor(untouched)
    dist.all_reduce(left)
    lines.append(
        f"{len(classes) - int(left)} centers start at the mean embedding of up to {IMAGES} images"
    )
    if left:
        lines.append(f"{int(left)} centers start at random: no image of theirs can be embedded")
    return lines


def foresee_warm_start(config: Config, saved: SavedCheckpoint | SavedFile) -> list[str]:
    """What `warm_start` would take of the backbone, found before data are read or anything is
    allocated; call it on every rank.

    Returns lines for the log. Raises as `warm_start`, but for a checkpoint that is damaged and
    statistics that are not there.
    """
    shapes = under(BACKBONE, saved.shapes())
    with torch.device("meta"):
        network = create_network(config)
    try:
        misfits = _require_fit(network, shapes, path=saved.path)
    except WeightsError as error:
        held = saved.architecture
        raise WeightsError(
            f"run.init_from={config.run.init_from}: {error}. It holds {held}, "
            f"{held.embedding_dim} values, and model.name={config.model.name} is configured"
        ) from error
    return [f"backbone from {saved.path}", *misfits]


def take_backbone(network: nn.Module, weights: Mapping[str, Tensor], *, path: Path) -> list[str]:
    """Copy the floating tensors whose names and shapes fit, in place.

    Returns a line for each way in which the network's others do not fit, naming them: none where it
    was taken whole. Raises WeightsError where none fits, and where there are tensors that have no
    place in it: without them those that fit would compute something else.
    """
    shapes = {name: tensor.shape for name, tensor in weights.items()}
    lines = _require_fit(network, shapes, path=path)
    with torch.no_grad():
        for name, tensor in _started(network).items():
            if shapes.get(name) == tensor.shape:
                tensor.copy_(weights[name])
    return lines


def _started(network: nn.Module) -> dict[str, Tensor]:
    """Its tensors that other weights may start: low-rank updates begin at nothing."""
    return {
        name: tensor
        for name, tensor in network.state_dict().items()
        if tensor.is_floating_point() and name.rpartition(".")[2] not in FACTORS
    }


def _require_fit(network: nn.Module, weights: Mapping[str, torch.Size], *, path: Path) -> list[str]:
    """As `take_backbone`, by shapes alone."""
    own = {name: tensor.shape for name, tensor in _started(network).items()}
    missing = [name for name in own if name not in weights]
    other = [name for name in own if name in weights and weights[name] != own[name]]
    if len(missing) + len(other) == len(own):
        raise WeightsError(
            f"{path} has no tensor that fits model.name's: it has {some(list(weights))}; expected "
            f"{some(list(own))}. Set the model's name and width to what was trained there"
        )
    if len(other) > len(own) - len(missing) - len(other):
        raise WeightsError(
            f"{path} is of another network than model.name's: {len(other)} of its tensors have "
            f"other shapes, such as {_shapes(other[:1], weights, own)}. Set the model's name and "
            "width to what was trained there"
        )
    if 2 * len(missing) > len(own):
        raise WeightsError(
            f"{path} is of another network than model.name's: it does not have {len(missing)} of "
            f"{len(own)} tensors, such as {missing[0]}. Set the model's name to what was trained "
            "there"
        )
    unused = [name for name in weights if name not in network.state_dict()]
    if unused:
        raise WeightsError(
            f"{path} has {len(unused)} tensors that model.name's network has not: {some(unused)}. "
            "Without them the others are of no network that was trained. Set the model's name to "
            "what was trained there; if these are no part of it, save a file without them"
        )
    lines = []
    if missing:
        lines.append(f"not there: {some(missing)}")
    if other:
        lines.append(f"of other shapes: {_shapes(other, weights, own)}")
    return lines


def _shapes(
    names: list[str], theirs: Mapping[str, torch.Size], own: Mapping[str, torch.Size]
) -> str:
    shapes = [f"{name} {tuple(theirs[name])}, here {tuple(own[name])}" for name in names]
    return some(shapes, between="; ")


def _check_what_stays(
    network: nn.Module, weights: Mapping[str, Tensor], saved: SavedCheckpoint | SavedFile
) -> None:
    """Raise WeightsError where statistics that no step changes would stay as they were drawn.

    Layers that learn find their way from random weights; a BatchNorm that normalizes by statistics
    of no image lets the activations grow until they are not finite.
    """
    drawn = [
        f"{name}.running_mean"
        for name, module in network.named_modules()
        if isinstance(module, _BatchNorm) and not module.training
        if _unlike(weights.get(f"{name}.running_mean"), module.running_mean)
    ]
    if drawn:
        raise WeightsError(
            f"{saved.path} does not have the statistics of {len(drawn)} BatchNorms: {some(drawn)}; "
            "optim.freeze_bn, optim.freeze and model.lora_rank would keep them as they are drawn. "
            f"It holds {saved.architecture}, {saved.architecture.embedding_dim} values: "
            "set model.name, model.width and model.embedding_dim to that, or do not freeze"
        )


def _unlike(given: Tensor | None, own: Tensor | None) -> bool:
    return own is not None and (given is None or given.shape != own.shape)


def _with_statistics(
    saved: SavedCheckpoint | SavedFile, config: Config, data: TrainingData, world: World
) -> tuple[dict[str, Tensor], list[str]]:
    """The backbone's tensors, where BatchNorms without statistics got those of training images.

    The first rank measures them. Returns, too, a line for the log where it did.
    """
    backbone, records, size = saved.backbone(), data.records, config.data.image_size
    if not backbone.unfolded or saved.architecture.image_size != size:
        return backbone.tensors, []
    network = saved.network().requires_grad_(False).eval()
    load = decoder(
        lambda places: records.sources(np.arange(places.start, places.stop)), image_size=size
    )

    def measure() -> tuple[dict[str, Tensor], int]:
        pixels = some_images(load, len(records) if world.is_main else 0)
        if not len(pixels):
            return {}, 0
        changed = measure_statistics(
            *(network, backbone.unfolded, pixels), device=world.device, progress="statistics"
        )
        return changed, len(pixels)

    changed, images = from_main(together(measure))
    line = f"{len(backbone.unfolded)} BatchNorms got the statistics of {images} training images"
    return backbone.tensors | changed, [line]


def match_rows(
    config: Config, data: TrainingData, saved: SavedCheckpoint | SavedFile, *, num_classes: int
) -> tuple[np.ndarray, str]:
    """(C,) int64: for each class the row of the saved head that is the same person, or -1; and how
    they were found, in words. Call it on every rank.

    Raises WeightsError, IdentitiesError for a checkpoint that contradicts itself.
    """
    none = np.full(num_classes, -1, np.int64)
    shapes = saved.shapes()
    if isinstance(saved, SavedFile) or CENTERS not in shapes:
        return none, "taken: there is no head"
    theirs = (saved.config.model.embedding_dim, saved.config.head.subcenters)
    ours = (config.model.embedding_dim, config.head.subcenters)
    if theirs != ours:
        return none, (
            f"taken: they have model.embedding_dim={theirs[0]} and head.subcenters={theirs[1]}, "
            f"here it is {ours[0]} and {ours[1]}"
        )
    held = shapes[CENTERS][0]
    people = together(lambda: read_identities(saved.path))
    if people is None:
        return _rows_by_count(held, config, data, none)
    if people.num_classes != held:
        raise WeightsError(
            f"{saved.path}: its head has {held} rows, its identities.json names "
            f"{people.num_classes}: expected the file that was written with it. Restore that, or "
            "remove this one"
        )
    now = together(
        lambda: Identities.of(
            data.records, num_classes=num_classes, identity_map=config.data.identity_map
        )
    )
    return now.rows_from(people), "taken, by the label in the same file or by the name"


def _rows_by_count(
    held: int, config: Config, data: TrainingData, none: np.ndarray
) -> tuple[np.ndarray, str]:
    """Where nothing says whose the rows are: those of the first files, if these have as many."""
    following = np.cumsum([len(labels) for labels in data.records.label_maps]).tolist()
    if config.data.identity_map or config.data.labels == "dense":
        following = []
    if held not in (*following, len(none)):
        return none, f"taken: nothing says whose its {held} are, and no files have as many labels"
    return (
        np.where(np.arange(len(none)) < held, np.arange(len(none)), none),
        f"taken, row by label: nothing says whose its {held} are, but there are as many labels",
    )
