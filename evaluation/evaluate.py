"""Models on test sets: embed each set by each model, judge, compare, and gather it all.

An image is embedded once for a model, also where several runs of the command need it: see
evaluation/features.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from evaluation.features import Embedder, Features, NonFiniteEmbeddingsError, extract
from evaluation.images import ImagesError
from evaluation.protocols.named_sets import CLEAN
from evaluation.protocols.protocol import Asked, TestSet
from evaluation.result import Comparison, Evaluation, Model, Result
from facestream import UserError


@dataclass(frozen=True)
class Judged:
    """A model to judge.

    Attributes:
        about: as results show it; its name is unique.
        embedder: how it is run.
    """

    about: Model
    embedder: Embedder


@dataclass(frozen=True)
class Settings:
    """How models are judged.

    Attributes:
        asked: what results are to hold.
        flip: whether to add the mirror image's embedding.
        skip_damaged: whether damaged images are left out and counted instead of refused.
        keep: a folder for embeddings; None keeps none.
        leaked: by the name of a set, names of images that are in the training set, too.
        made: when, for the results: ISO 8601 in UTC.
    """

    asked: Asked = field(default_factory=Asked)
    flip: bool = True
    skip_damaged: bool = False
    keep: Path | None = None
    leaked: Mapping[str, frozenset[str]] = field(default_factory=dict)
    made: str = ""


# An image size to the set, its images of that size.
Opener = Callable[[int], TestSet]


def embed_sets(models: Sequence[Judged], openers: Sequence[Opener], settings: Settings) -> None:
    """Embed all that is not yet kept; with several ranks call it on all, which share the work.

    Embeddings that are not finite are kept, too: `evaluate` refuses the model.

    Raises:
        UserError: what else `extract` raises, and what openers raise.
    """
    for opener in openers:
        for model, test_set in _each(models, opener):
            with suppress(NonFiniteEmbeddingsError):  # on every rank
                _features(model, test_set, settings)


def evaluate(
    models: Sequence[Judged],
    openers: Sequence[Opener],
    settings: Settings,
    *,
    overlap: Mapping[str, Any] | None = None,
    tell: Callable[[Result], None] = lambda result: None,
    fail: Callable[[UserError], None] | None = None,
) -> Evaluation:
    """Judge every model on every set, alone, whatever the ranks that embed.

    Args:
        overlap: what a leak check found, for the report.
        tell: gets each result when it is there.
        fail: gets why a model cannot embed a set, while others are left: nothing is returned of
            that model. None raises it.

    Raises:
        UserError: a subclass of it, where a set or the last model that is left cannot be judged.
    """
    left = list(models)
    results: list[Result] = []
    comparisons: list[Comparison] = []
    leaks = dict(overlap or {})
    for opener in openers:
        by_model: dict[str, Features] = {}
        for model, test_set in _each(tuple(left), opener):
            try:
                features = _features(model, test_set, settings)
            except ImagesError:  # of the set, whatever the model
                raise
            except UserError as error:
                if fail is None or len(left) == 1:
                    raise
                left.remove(model)
                fail(error)
                continue
            assert features is not None, "there is one rank"
            by_model[model.about.name] = features
            judged = [_judge(test_set, features, model, settings.asked, settings)]
            if leaked := settings.leaked.get(test_set.name):
                rest = replace(settings.asked, without=settings.asked.without | leaked)
                try:
                    clean = _judge(test_set, features, model, rest, settings)
                except UserError as error:  # what is left shows nothing: the whole set still does
                    leaks[f"{test_set.name}{CLEAN}"] = str(error)
                else:
                    judged.append(replace(clean, set=f"{clean.set}{CLEAN}"))
            for result in judged:
                tell(result)
            results += judged
        if len(by_model) > 1 and settings.asked.draws:
            comparisons += test_set.compare(by_model, asked=settings.asked)
    judged_all = [model.about for model in left]
    names = {model.name for model in judged_all}
    results = [one for one in results if one.model in names]
    comparisons = [one for one in comparisons if {one.first, one.second} <= names]
    return Evaluation(judged_all, results, comparisons, leaks)


def _each(models: Sequence[Judged], opener: Opener) -> Iterator[tuple[Judged, TestSet]]:
    """Every model with the set in its own size, opened once a size."""
    opened: dict[int, TestSet] = {}
    for model in models:
        size = model.embedder.image_size
        if size not in opened:
            opened[size] = opener(size)
        yield model, opened[size]


def _features(model: Judged, test_set: TestSet, settings: Settings) -> Features | None:
    try:
        return extract(
            model.embedder,
            test_set.images,
            flip=settings.flip,
            skip_damaged=settings.skip_damaged,
            keep=settings.keep,
            progress=f"{test_set.name}, {model.about.name}",
        )
    except (ImagesError, NonFiniteEmbeddingsError) as error:
        raise type(error)(f"{model.about.name} on {test_set.name}: {error}") from error
    except UserError as error:
        raise UserError(f"{model.about.name} on {test_set.name}: {error}") from error


def _judge(
    test_set: TestSet, features: Features, model: Judged, asked: Asked, settings: Settings
) -> Result:
    try:
        result = test_set.judge(features, model=model.about.name, asked=asked)
    except UserError as error:
        raise UserError(f"{model.about.name} on {test_set.name}: {error}") from error
    return replace(result, made=settings.made)
