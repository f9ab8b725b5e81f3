"""A network scored on a test set while it is trained: by all ranks together, judged by the first.

Every rank embeds its share of the images. The first has all embeddings, makes the scores and the
result of them, and hands the scores to the others.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import numpy as np
import torch.distributed as dist

from evaluation.features import Embedder, Features, extract
from evaluation.images import ImagesError
from evaluation.protocols.protocol import Asked, TestSet
from evaluation.result import Result
from facestream import UserError

T = TypeVar("T")


class Sample(NamedTuple):
    """Some of a set's images: their names and embeddings, (S, D) float32."""

    names: tuple[str, ...]
    embeddings: np.ndarray


@dataclass(frozen=True)
class Scored:
    """What a network reaches on a set.

    Attributes:
        scores: its figures, the one that networks are compared by first; the same on every rank.
        result: all figures, with curves; the first rank's, None on others and where the set cannot
            show what a result has.
        sample: the set's first images; the first rank's, where one was asked for.
        pictures: by name, JPEG, of the sample and of the images of the result's hardest pairs.
    """

    scores: Mapping[str, float]
    result: Result | None = None
    sample: Sample | None = None
    pictures: Mapping[str, bytes] = field(default_factory=dict)


def score(
    embedder: Embedder,
    test_set: TestSet,
    *,
    model: str,
    draws: int = 0,
    sample: int = 0,
    pictures: bool = False,
) -> Scored:
    """Score a network; all ranks must call it together.

    Args:
        embedder: the network, in eval mode.
        model: its name, for the result.
        draws: of the bootstrap, for the result's intervals; 0 for none.
        sample: how many images' embeddings to hand out.
        pictures: whether to hand out images, too.

    Raises:
        ImagesError: images that cannot be decoded; on every rank.
        NonFiniteEmbeddingsError: a network that cannot be judged; on every rank.
        UserError: a set that cannot be scored; on every rank.
    """
    try:
        features = extract(embedder, test_set.images)
    except ImagesError as error:
        raise ImagesError(f"{test_set.name}: {error}") from error
    scores = _by_first(embedder, lambda: _scores(test_set, features))
    result = None if features is None else _result(test_set, features, model=model, draws=draws)
    first = range(min(sample, len(test_set.images)))
    shown: Mapping[str, bytes] = {}
    if pictures:
        wanted = _by_first(embedder, lambda: {*first, *_hardest(test_set, result)})
        shown = _pictures(embedder, test_set, wanted)
    sampled = None
    if features is not None and first:
        names = tuple(test_set.images.names[place] for place in first)
        sampled = Sample(names, np.array(features.embeddings[: len(first)]))
    return Scored(scores, result, sampled, shown)


def _scores(test_set: TestSet, features: Features | None) -> dict[str, float]:
    assert features is not None
    scores = test_set.scores(features)
    return {test_set.headline: scores[test_set.headline]} | scores


def _result(test_set: TestSet, features: Features, *, model: str, draws: int) -> Result | None:
    try:
        return test_set.judge(features, model=model, asked=Asked(draws=draws))
    except UserError as error:
        logging.warning("%s has scores but no curves: %s", test_set.name, error)
        return None


def _hardest(test_set: TestSet, result: Result | None) -> Collection[int]:
    """The places of the images in a result's hardest pairs, which may be of templates instead."""
    if result is None:
        return ()
    pairs = [pair for listed in result.hardest.values() for pair in listed]
    names = {name for pair in pairs for name in (pair.a, pair.b)}
    return [place for place, name in enumerate(test_set.images.names) if name in names]


def _pictures(
    embedder: Embedder, test_set: TestSet, wanted: Collection[int]
) -> Mapping[str, bytes]:
    """By name, on the first rank: each rank has the images of its own batches, perhaps no other."""
    images = test_set.images
    own = {}
    for place in sorted(wanted):
        is_own = place // embedder.batch_size % embedder.world_size == embedder.rank
        if is_own and (picture := images.picture(place)):
            own[images.names[place]] = picture
    if embedder.world_size == 1:
        return own
    everyone = [own] * embedder.world_size if embedder.rank == 0 else None
    dist.gather_object(own, everyone, dst=0)
    return {name: picture for theirs in everyone or () for name, picture in theirs.items()}


def _by_first(embedder: Embedder, work: Callable[[], T]) -> T:
    """What the first rank makes, on all; where it raises, all raise, so that none waits."""
    if embedder.world_size == 1:
        return work()
    made: list[tuple[T | None, Exception | None]] = [(None, None)]
    if embedder.rank == 0:
        try:
            made = [(work(), None)]
        except Exception as error:
            made = [(None, error)]
    dist.broadcast_object_list(made, src=0, device=embedder.device)
    [(result, raised)] = made
    if raised is not None:
        raise raised
    return result  # type: ignore[return-value]
