"""Where new classes start: at the mean direction of their images (imprinting, Qi et al., 2018,
arXiv:1712.07136), so that the head does not pull an able backbone towards random centers.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize as to_unit_length

from evaluation.embedding import decoder, embed_batches, on_pixels
from models import fold_batch_norm
from pipeline.ahead import cores
from pipeline.collection import Collection
from training.distributed import World
from training.step.precision import Precision

IMAGES = 32  # of an identity at most: more hardly move the mean

_BATCH = 128
_PIECE = 1 << 20  # labels looked at together


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
    # Folding makes a copy: the network's own mode and statistics stay.
    folded = fold_batch_norm(network, run_on=world.device)
    batches = embed_batches(
        on_pixels(folded, device=world.device, dtype=precision.compute_dtype),
        decoder(
            lambda places: records.sources(numbers[places.start : places.stop]),
            image_size=image_size,
        ),
        range(len(numbers)),
        device=world.device,
        batch_size=_BATCH,
        image_size=image_size,
        threads=max(1, cores() // world.local_world_size),
        rank=world.rank,
        world_size=world.world_size,
        progress="new identities",
    )
    sums = torch.zeros((owned.stop - owned.start) * subcenters, embedding_dim)
    for batch in batches:
        rows = _to_directions(batch.embeddings).cpu()
        cut = slice(batch.places.start, batch.places.stop)
        ours = np.flatnonzero((places[cut] >= owned.start) & (places[cut] < owned.stop))
        into = (places[cut][ours] - owned.start) * subcenters + turns[cut][ours] % subcenters
        sums.index_add_(0, torch.from_numpy(into), rows[ours])
    sums = sums.view(-1, subcenters, embedding_dim)
    # A sub-center beyond the images of its class starts where all of them are.
    missing = (sums == 0).all(dim=2, keepdim=True)
    sums = torch.where(missing, sums.sum(dim=1, keepdim=True), sums)
    return to_unit_length(sums, dim=2).flatten(1)


def _to_directions(embeddings: Tensor) -> Tensor:
    """(B, D) of unit length, zeros where not finite."""
    finite = embeddings.isfinite().all(dim=1, keepdim=True)
    return to_unit_length(torch.where(finite, embeddings, 0))


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
