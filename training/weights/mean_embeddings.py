"""Where new classes start: at the mean direction of their images (imprinting, Qi et al., 2018,
arXiv:1712.07136), so that the head does not pull an able backbone towards random centers.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn.functional import normalize as to_unit_length

from models import fold_batch_norm, normalize
from pipeline.ahead import cores, map_ahead
from pipeline.collection import Collection
from pipeline.jpeg import decode_batch
from training.distributed import World
from training.precision import Precision

IMAGES = 32  # of an identity at most: more hardly move the mean

_BATCH = 128
_PIECE = 1 << 20  # labels looked at together
_COLUMNS = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())


def mean_embeddings(
    network: nn.Module,
    records: Collection,
    classes: np.ndarray,
    *,
    owned: slice,
    subcenters: int,
    embedding_dim: int,
    image_size: int,
    world: World,
    precision: Precision,
) -> Tensor:
    """Mean L2-normalized embeddings of some classes' images; call it on every rank.

    Up to 32 images of a class are taken, spread evenly over those it has; with several sub-centers
    they take turns. Batches are shared out to the ranks but cut the same whatever their number, and
    added up in the same order: the result does not depend on the world size.

    Args:
        network: images to embeddings, on the rank's device, the same on every rank; not under
            DistributedDataParallel.
        classes: (N,) int64, rising: labels of `records`, the same on every rank.
        owned: which places among them this rank wants to have.
        subcenters: K.
        embedding_dim: D.

    Returns:
        (owned, K·D) float32 on the CPU: each D of unit length, or zeros where a class has no image
        that can be decoded and embedded.
    """
    numbers, places, turns = _choose_images(records, classes)
    starts = range(0, len(numbers), _BATCH)
    network = fold_batch_norm(network)  # a copy: the network's own mode and statistics stay

    def decode(start: int) -> tuple[np.ndarray, dict[int, str]]:
        return decode_batch(records.sources(numbers[start : start + _BATCH]), size=image_size)

    def embedded() -> Iterator[Tensor]:
        workers = max(1, cores() // world.local_world_size)
        for pixels, faults in map_ahead(
            decode, starts[world.rank :: world.world_size], workers=workers
        ):
            rows = _embed(network, pixels, world, precision)
            rows[list(faults)] = 0
            yield rows

    sums = torch.zeros((owned.stop - owned.start) * subcenters, embedding_dim)
    console = Console(stderr=True, quiet=not world.is_main)
    with Progress(*_COLUMNS, console=console, transient=True) as bar:
        task = bar.add_task("new identities", total=len(numbers))
        for start, rows in zip(
            starts, _of_all_ranks(embedded(), len(starts), embedding_dim, world)
        ):
            place, turn = places[start : start + _BATCH], turns[start : start + _BATCH]
            ours = np.flatnonzero((place >= owned.start) & (place < owned.stop))
            into = (place[ours] - owned.start) * subcenters + turn[ours] % subcenters
            sums.index_add_(0, torch.from_numpy(into), rows[ours])
            bar.advance(task, len(place))
    sums = sums.view(-1, subcenters, embedding_dim)
    # A sub-center beyond the images of its class starts where all of them are.
    missing = (sums == 0).all(dim=2, keepdim=True)
    sums = torch.where(missing, sums.sum(dim=1, keepdim=True), sums)
    return to_unit_length(sums, dim=2).flatten(1)


@torch.no_grad()
def _embed(network: nn.Module, pixels: np.ndarray, world: World, precision: Precision) -> Tensor:
    """(B, H, W, 3) uint8 to (B, D) float32 of unit length on the CPU, zeros if not finite."""
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(world.device)
    with precision.autocast(world.device):
        embeddings = network(normalize(images, precision.compute_dtype)).float()
    finite = embeddings.isfinite().all(dim=1, keepdim=True)
    return to_unit_length(torch.where(finite, embeddings, 0)).cpu()


def _of_all_ranks(
    own: Iterator[Tensor], batches: int, embedding_dim: int, world: World
) -> Iterator[Tensor]:
    """(128, D) of each batch in turn, the last one filled up with zeros, from whichever rank."""
    for first in range(0, batches, world.world_size):
        rows = torch.zeros(_BATCH, embedding_dim)
        if first + world.rank < batches:
            found = next(own)
            rows[: len(found)] = found
        everyone = [torch.empty_like(rows) for _ in range(world.world_size)]
        dist.all_gather(everyone, rows)
        yield from everyone[: batches - first]


def _choose_images(
    records: Collection, classes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(M,) record numbers class by class, the places of their classes, and which of a class each
    is."""
    found, places = [], []
    for start in range(0, len(records), _PIECE):
        numbers = np.arange(start, min(start + _PIECE, len(records)))
        labels = records.labels(numbers)
        place = np.searchsorted(classes, labels).clip(max=max(len(classes) - 1, 0))
        wanted = classes[place] == labels if len(classes) else np.zeros(len(labels), bool)
        found.append(numbers[wanted])
        places.append(place[wanted])
    numbers, place = np.concatenate(found), np.concatenate(places)
    order = np.argsort(place, kind="stable")
    numbers, place = numbers[order], place[order]
    turn, count = _turns(place), np.bincount(place)[place]
    # Of n > 32 images those are taken where 32 · turn / n comes to a whole number or passes it.
    taken = turn * IMAGES // count > (turn - 1) * IMAGES // count
    numbers, place = numbers[taken], place[taken]
    return numbers, place, _turns(place)


def _turns(sorted_places: np.ndarray) -> np.ndarray:
    """(M,) how many equal ones come before each."""
    return np.arange(len(sorted_places)) - np.searchsorted(sorted_places, sorted_places)
