"""Embeddings of a whole test set, kept on disk as they are made: a killed evaluation goes on.

What is kept is known by the model's digest, the images' fingerprint and all that changes an
embedding; anything else is made again. See evaluation/kept_rows.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from evaluation.embedding import embed_batches
from evaluation.images import Images, ImagesError
from evaluation.kept_rows import kept_rows
from facestream import UserError

T = TypeVar("T")


class NonFiniteEmbeddingsError(UserError):
    """Embeddings that cannot be compared: the network overflowed or has diverged."""


@dataclass(frozen=True)
class Embedder:
    """A model as evaluation takes it: what makes pixels into embeddings, and how it is run.

    Attributes:
        embed: (b, 3, S, S) uint8 on the device to (b, D) float32; see embedding.on_pixels.
        digest: of its weights and of how it computes (precision, input): keeps embeddings apart.
        image_size: S.
        device: where it computes.
        batch_size: images at a time.
        threads: that load images.
        rank, world_size: of the default process group; 0 and 1 need none.
    """

    embed: Callable[[Tensor], Tensor]
    digest: str
    image_size: int
    device: torch.device
    batch_size: int = 128
    threads: int = 1
    rank: int = 0
    world_size: int = 1


@dataclass(frozen=True)
class Features:
    """A set's embeddings.

    Attributes:
        embeddings: (N, D) float32, not L2-normalized, perhaps mapped from a file; zeros for a
            damaged image.
        norms: (N,) float32, of the embeddings before their mirror images' were added.
        damaged: what is wrong with which images.
        flip: whether the mirror image's embedding is added.
        against: (N, D) float32, another model's embeddings of the images, taken for those that
            stand second in a pair; None: these ones.
    """

    embeddings: np.ndarray
    norms: np.ndarray
    damaged: Mapping[int, str]
    flip: bool = True
    against: np.ndarray | None = None


def extract(
    embedder: Embedder,
    images: Images,
    *,
    flip: bool = True,
    skip_damaged: bool = False,
    keep: Path | None = None,
    progress: str = "",
) -> Features | None:
    """Embed a set, all ranks together; the first rank gets what comes of it, others None.

    Args:
        flip: whether to add the mirror image's embedding.
        skip_damaged: go on where images are damaged; they are in `Features.damaged`.
        keep: a folder that embeddings are kept in and taken from again; None keeps none.
        progress: a name for a progress bar.

    Raises:
        ImagesError: damaged images, unless they are to be skipped; on every rank.
        NonFiniteEmbeddingsError: on every rank.
    """
    assert images.size == embedder.image_size
    main = embedder.rank == 0
    known_by = (2, embedder.digest, images.fingerprint, images.size, flip, embedder.batch_size)
    with kept_rows(
        keep if main else None,
        known_by=repr(known_by),
        count=len(images),
        batch_size=embedder.batch_size,
    ) as rows:
        done = _of_main(rows.done, embedder)
        faults: dict[int, str] = {}
        for batch in embed_batches(
            embedder.embed,
            images.load,
            range(done, len(images)),
            device=embedder.device,
            batch_size=embedder.batch_size,
            image_size=images.size,
            flip=flip,
            threads=embedder.threads,
            rank=embedder.rank,
            world_size=embedder.world_size,
            progress=progress,
        ):
            faults.update(batch.faults)
            if main:
                rows.add(torch.cat([batch.embeddings, batch.norms[:, None]], dim=1).cpu().numpy())
        found = rows.all() if main else None
    damaged = _of_everyone(faults, embedder)
    broken = None
    if found is not None:
        damaged |= _damaged_before(found[:done], images)
        broken = int((~np.isfinite(found).all(axis=1)).sum())
    damaged, broken = _of_main((damaged, broken), embedder)
    if damaged and not skip_damaged:
        listed = "; ".join(f"{images.names[i]} {damaged[i]}" for i in sorted(damaged)[:5])
        raise ImagesError(f"{len(damaged)} of {len(images)} images are bad: {listed}")
    if broken:
        raise NonFiniteEmbeddingsError(
            f"{broken} of {len(images)} embeddings are not finite: the model has diverged, is "
            "untrained, or overflows float16; try bfloat16 or float32, or an earlier checkpoint"
        )
    return None if found is None else Features(found[:, :-1], found[:, -1], damaged, flip)


def _of_main(value: T, embedder: Embedder) -> T:
    """The first rank's value, on all."""
    if embedder.world_size == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, device=embedder.device)
    return values[0]


def _of_everyone(faults: dict[int, str], embedder: Embedder) -> dict[int, str]:
    if embedder.world_size == 1:
        return faults
    everyone: list[dict[int, str]] = [{} for _ in range(embedder.world_size)]
    dist.all_gather_object(everyone, faults)
    return {place: fault for theirs in everyone for place, fault in theirs.items()}


def _damaged_before(rows: np.ndarray, images: Images) -> dict[int, str]:
    """Faults of images that an earlier evaluation met: their rows are zeros."""
    found: dict[int, str] = {}
    for place in np.flatnonzero(rows[:, -1] == 0).tolist():
        _, faults = images.load(range(place, place + 1))
        if faults:
            found[place] = faults[0]
    return found
