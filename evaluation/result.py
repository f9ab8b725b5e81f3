"""What an evaluation found and how: the one form that tables, pictures and pages are drawn from.

As JSON it is complete by itself: whoever reads a number finds beside it the protocol and its
version, what was flipped and normalized, where the threshold comes from, how many pairs of which
kind there were, the code's version and the model's digest.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from facestream import VERSION, UserError

FORMAT = 1


class ResultError(UserError):
    """A file that is not the JSON of an evaluation's results."""


@dataclass(frozen=True)
class Figure:
    """A number with its doubt.

    Attributes:
        value: the number; None where the data cannot show it, for which `note` has the reason.
        low, high: its interval at the result's level; None where there is none.
        note: what a reader must know of it, such as the rule of three; a sentence or nothing.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Curve:
    """Points (x, y) in order, y perhaps with a band.

    Attributes:
        x, y: of equal length.
        low, high: of the same length, or empty.
    """

    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True)
class HardPair:
    """A comparison that went wrong by most: an impostor pair of high or a genuine of low score.

    Attributes:
        score: cosine.
        a, b: the names of its images or templates.
    """

    score: float
    a: str
    b: str


@dataclass(frozen=True)
class Group:
    """The figures of a part of the set: the pairs or searches within one group of people.

    Attributes:
        counts: of this part, as `Result.counts`.
        figures: as `Result.figures`; "fmr at the common threshold" and its like, too.
    """

    counts: Mapping[str, int]
    figures: Mapping[str, Figure]


@dataclass(frozen=True)
class Model:
    """Which model was judged, and what it was given.

    Attributes:
        name: as shown; unique among those of a comparison.
        source: the path it was read from.
        digest: of its weights: kept embeddings and cards are known by it.
        network: such as "iresnet50", or "onnx".
        embedding_dim: D.
        image_size: pixels.
        input: what its pixels are made into, in words.
        precision: "float32", "bfloat16" or "float16".
        sample_rate: of the PartialFC head it was trained with, where known.
        given: the same as `input`, in the words of tools/evaluate.py's --onnx-input.
    """

    name: str
    source: str
    digest: str
    network: str
    embedding_dim: int
    image_size: int
    input: str
    precision: str
    sample_rate: float | None = None
    given: str = ""


@dataclass(frozen=True)
class Result:
    """What one model reaches on one set.

    Attributes:
        model: the name of one of the models.
        set: as named on the command line: "lfw.bin+blur".
        protocol: name and version: "verification/1".
        settings: how it was made, in words and numbers: flip, norm, folds, the threshold's origin,
            the degradation's parameters.
        counts: "images", "genuine", "impostor", "identities", "templates", "probes", "damaged", …
        headline: the name of the figure to show where there is room for one.
        figures: by name, in the order to show: "accuracy", "tar@far=0.001", "eer", "rank-1", …
        curves: by name: "roc" (FAR, TAR), "det" (FMR, FNMR), "cmc" (rank, rate), "fnir"
            (FPIR, FNIR of rank 1), "genuine" and "impostor" (cosine, pairs a bin), "discard" (share
            discarded, FNMR).
        interval: how the intervals were made: method, clusters, draws, level, seed; empty for none,
            or "missing" alone: why there are none.
        groups: by group name.
        hardest: "false accepts" and "false rejects".
        made: when, ISO 8601 in UTC.
    """

    model: str
    set: str
    protocol: str
    settings: Mapping[str, Any]
    counts: Mapping[str, int]
    headline: str
    figures: Mapping[str, Figure]
    curves: Mapping[str, Curve] = field(default_factory=dict)
    interval: Mapping[str, Any] = field(default_factory=dict)
    groups: Mapping[str, Group] = field(default_factory=dict)
    hardest: Mapping[str, Sequence[HardPair]] = field(default_factory=dict)
    made: str = ""
    code: str = f"facestream {VERSION}"

    def __post_init__(self) -> None:
        assert self.headline in self.figures, self.headline


@dataclass(frozen=True)
class Comparison:
    """Two models on the very same pairs.

    Attributes:
        set: whose pairs.
        figure: of which figure.
        first, second: names of the models.
        difference: the first's less the second's, with the interval of the paired test.
        verdict: what is shown by it, in words.
    """

    set: str
    figure: str
    first: str
    second: str
    difference: Figure
    verdict: str


@dataclass(frozen=True)
class Evaluation:
    """All that a command or a run has found.

    Attributes:
        overlap: what the leak check found, as tools/overlap.py writes it; empty where none was.
    """

    models: Sequence[Model]
    results: Sequence[Result]
    comparisons: Sequence[Comparison] = ()
    overlap: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> str:
        """Strict JSON: what is not finite stands as null."""
        return json.dumps(_plain({"format": FORMAT, **asdict(self)}), ensure_ascii=False, indent=1)


def read_evaluation(path: str | Path) -> Evaluation:
    """Read the JSON of an `Evaluation`.

    Raises:
        ResultError: no such file, no JSON, or JSON of something else or of a newer version.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content["format"]
        if version != FORMAT:
            raise ResultError(
                f"{path} is of format {version}; this version of Facestream reads format {FORMAT}: "
                "update it, or evaluate again"
            )
        return Evaluation(
            models=[Model(**model) for model in content["models"]],
            results=[_result(result) for result in content["results"]],
            comparisons=[
                Comparison(**{**one, "difference": Figure(**one["difference"])})
                for one in content["comparisons"]
            ],
            overlap=content["overlap"],
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        if isinstance(error, ResultError):
            raise
        raise ResultError(
            f"{path} cannot be read as the results of an evaluation ({type(error).__name__}: "
            f"{error}): expected results.json as tools/evaluate.py writes it"
        ) from error


def _result(values: dict[str, Any]) -> Result:
    return Result(
        **values
        | {
            "figures": _figures(values["figures"]),
            "curves": {name: Curve(**curve) for name, curve in values["curves"].items()},
            "groups": {
                name: Group(group["counts"], _figures(group["figures"]))
                for name, group in values["groups"].items()
            },
            "hardest": {
                kind: [HardPair(**pair) for pair in pairs]
                for kind, pairs in values["hardest"].items()
            },
        }
    )


def _figures(values: dict[str, Any]) -> dict[str, Figure]:
    return {name: Figure(**figure) for name, figure in values.items()}


def _plain(value: Any) -> Any:
    """What json takes: numpy's numbers and arrays as Python's, NaN and infinity as None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
