"""What an evaluation found, written into the card of the model's file and the page beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from evaluation.result import Model, Result
from pipeline.whole_file import write_whole
from training.frozen.card import (
    KINDS,
    Card,
    CardError,
    GroupRates,
    OperatingPoint,
    read_card,
    write_card,
)
from training.shipping.page import PAGE, with_results

_THRESHOLD = "threshold@fmr="
_RATE = "tar@far="
_RATES = ("fmr at the common threshold", "fnmr at the common threshold")


def require_files(models: Sequence[str]) -> None:
    """Raise CardError unless all of these can have a card, and what card they have is readable."""
    for model in models:
        if Path(model).suffix not in KINDS:
            raise CardError(
                f"--card writes into {' and '.join(KINDS)} files, and {model} is none: export it "
                "first (tools/export_weights.py, tools/export_onnx.py)"
            )
        read_card(model)


def add_results(model: Model, results: Sequence[Result]) -> list[Path]:
    """Write what was found of a model into its file's card; returns what was written.

    Sets that were not evaluated now keep what the card says of them, unless it is the card of other
    weights. A README.md beside the file is written too, where it is a model card.

    Raises CardError, OSError.
    """
    path = Path(model.source)
    card = _with_results(_card(path, model), results)
    write_card(path, card)
    page = path.with_name(PAGE)
    text = with_results(page.read_text(encoding="utf-8"), card) if page.is_file() else None
    if text is None:
        return [path]
    write_whole(page, text)
    return [path, page]


def _card(path: Path, model: Model) -> Card:
    """The file's own, or a new one where it has none, or that of other weights."""
    card = read_card(path)
    if card and card.digest == model.digest:
        return card
    return Card(
        network=card.network if card else model.network,
        embedding_dim=model.embedding_dim,
        input=model.given,
        precision=model.precision,
        digest=model.digest,
        # Weights say themselves whose embeddings they make; of a graph nobody knows it.
        space=model.digest if path.suffix != ".onnx" else "",
    )


def _with_results(card: Card, results: Sequence[Result]) -> Card:
    sets = {result.set for result in results}
    return replace(
        card,
        points=[
            *(point for point in card.points if point.set not in sets),
            *(point for result in results for point in points_of(result)),
        ],
        groups=[
            *(group for group in card.groups if group.set not in sets),
            *(group for result in results for group in _groups(result)),
        ],
        scores={**card.scores, **{result.set: _scores(result) for result in results}},
    )


def points_of(result: Result) -> list[OperatingPoint]:
    """The thresholds that the set can show, by rates that become smaller."""
    points = [
        OperatingPoint(
            set=result.set,
            fmr=float(name.removeprefix(_THRESHOLD)),
            threshold=figure.value,
            low=figure.low,
            high=figure.high,
            genuine=result.counts["genuine"],
            impostor=result.counts["impostor"],
            flip=bool(result.settings.get("flip")),
        )
        for name, figure in result.figures.items()
        if name.startswith(_THRESHOLD) and figure.value is not None
    ]
    return sorted(points, key=lambda point: -point.fmr)


def _scores(result: Result) -> dict[str, float]:
    return {
        name: figure.value
        for name, figure in result.figures.items()
        if figure.value is not None and (name == result.headline or name.startswith(_RATE))
    }


def _groups(result: Result) -> list[GroupRates]:
    at = str(result.settings.get("common threshold", ""))
    return [
        GroupRates(result.set, name, at, *(group.figures[rate] for rate in _RATES))
        for name, group in result.groups.items()
        if all(rate in group.figures for rate in _RATES)
    ]
