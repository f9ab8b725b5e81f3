"""An Evaluation of models that do not exist, on scores drawn at random: every kind of content."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np

from evaluation.result import (
    Comparison,
    Curve,
    Evaluation,
    Figure,
    Group,
    HardPair,
    Model,
    Result,
)

BINS = np.linspace(-1, 1, 101)
INTERVAL = {
    "level": 0.95,
    "method": "bootstrap",
    "clusters": "identities",
    "draws": 1000,
    "seed": 0,
}


def model(name: str, sample_rate: float | None = 1.0) -> Model:
    return Model(
        name=name,
        source=f"runs/{name}/model.safetensors",
        digest="5f1d0c9a7be2" * 4,
        network="iresnet50",
        embedding_dim=512,
        image_size=112,
        input="RGB, (pixel − 127.5) / 127.5",
        precision="bfloat16",
        sample_rate=sample_rate,
    )


def result(name: str, place: str, *, quality: float = 1.0, seed: int = 0) -> Result:
    """Of 3,000 genuine and 3,000 impostor scores; `quality` moves the genuine ones up."""
    draw = np.random.default_rng(seed)
    genuine = np.clip(draw.normal(0.28 + 0.35 * quality, 0.13, 3000), -1, 1)
    impostor = np.clip(draw.normal(0.02, 0.09, 3000), -1, 1)
    far = np.geomspace(1 / 3000, 1, 121)
    thresholds = np.sort(impostor)[::-1][np.round(3000 * far).astype(int) - 1]
    tar = np.searchsorted(np.sort(-genuine), -thresholds, side="right") / 3000
    width = 0.02 * np.sqrt(tar * (1 - tar)) + 0.001
    low, high = np.clip(tar - width, 0, 1), np.clip(tar + width, 0, 1)
    accuracy = float(((genuine > 0.3).mean() + (impostor <= 0.3).mean()) / 2)
    discard = np.linspace(0, 0.9, 40)
    errors = (1 - accuracy) * np.exp(-3 * discard)
    return Result(
        model=name,
        set=place,
        protocol="verification/1",
        settings={
            "flip": "embeddings of image and mirror image added",
            "norm": "l2",
            "folds": 10,
            "threshold": "per fold, from the other nine folds",
        },
        counts={"images": 7701, "genuine": 3000, "impostor": 3000, "identities": 4281},
        headline="accuracy",
        figures={
            "accuracy": Figure(accuracy, accuracy - 0.004, min(1, accuracy + 0.003)),
            "tar@far=0.001": Figure(float(tar[far <= 1e-3][-1]), 0.95 * accuracy, 1.0),
            "tar@far=1e-06": Figure(
                None,
                note="3,000 impostor pairs cannot show a FAR of 1e-06: they show 0.001 at best",
            ),
            "eer": Figure(1 - accuracy, max(0, 0.997 - accuracy), 1.004 - accuracy),
            "auc": Figure(0.9991, 0.9985, 0.9996),
            "d′": Figure(4.51, 4.32, 4.7),
            "threshold": Figure(0.3012),
            "mean feature norm": Figure(21.73, 21.5, 21.9),
        },
        curves={
            "roc": Curve(far.tolist(), tar.tolist(), low.tolist(), high.tolist()),
            "det": Curve(far.tolist(), (1 - tar).tolist(), (1 - high).tolist(), (1 - low).tolist()),
            "genuine": _histogram(genuine),
            "impostor": _histogram(impostor),
            "discard": Curve(
                discard.tolist(),
                errors.tolist(),
                (0.8 * errors).tolist(),
                (1.25 * errors).tolist(),
            ),
        },
        interval=INTERVAL,
        groups={
            group: Group(
                {"genuine": 1500, "impostor": 1500},
                {
                    "accuracy": Figure(accuracy - shift, accuracy - shift - 0.006, accuracy),
                    "fmr at the common threshold": Figure(0.0013 + shift / 10, 0.0002, 0.004),
                    "fnmr at the common threshold": Figure(0.0087 + shift, 0.004, 0.02),
                },
            )
            for group, shift in (("African", 0.011), ("Asian", 0.008), ("Caucasian", 0.0))
        },
        hardest={
            "false accepts": [
                HardPair(0.61 - 0.02 * i, f"image {2 * i}", f"image {2 * i + 1}") for i in range(8)
            ],
            "false rejects": [
                HardPair(0.05 + 0.02 * i, f"image {100 + 2 * i}", f"image {101 + 2 * i}")
                for i in range(8)
            ],
        },
        made="2026-03-01T12:00:00+00:00",
    )


def cmc(name: str, place: str) -> Result:
    """A search, with what only searches have."""
    ranks = np.arange(1, 21)
    rates = 1 - 0.2 * 0.85**ranks
    fpir = np.geomspace(0.001, 1, 30)
    missed = 0.3 - 0.08 * np.log10(fpir / 0.001)
    return replace(
        result(name, place),
        protocol="identification/1",
        headline="rank-1",
        counts={"gallery": 500, "probes": 2000, "distractors": 10000},
        figures={
            "rank-1": Figure(float(rates[0]), 0.81, 0.85),
            "rank-5": Figure(float(rates[4]), 0.9, 0.93),
            "fnir@fpir=0.01": Figure(0.213, 0.18, 0.25),
        },
        curves={
            "cmc": Curve(ranks.tolist(), rates.tolist()),
            "fnir": Curve(
                fpir.tolist(), missed.tolist(), (0.9 * missed).tolist(), (1.1 * missed).tolist()
            ),
        },
        groups={},
    )


def evaluation(
    models: int = 2, places: tuple[str, ...] = ("lfw.bin", "lfw.bin+blur"), searches: bool = True
) -> Evaluation:
    """The first model is the best, and the paired tests say so of the first set alone."""
    names = [f"r50_rate{1 - 0.1 * i:.1f}" for i in range(models)]
    results = [
        result(name, place, quality=1 - 0.08 * i - 0.15 * place.count("+"), seed=j)
        for j, place in enumerate(places)
        for i, name in enumerate(names)
    ]
    if searches:
        results += [cmc(name, "tinyface") for name in names]
    return Evaluation(
        models=[model(name, 1 - 0.1 * i) for i, name in enumerate(names)],
        results=results,
        comparisons=[
            Comparison(
                set=place,
                figure="accuracy",
                first=first,
                second=second,
                difference=Figure(0.002, 0.0005 if not j else -0.001, 0.005),
                verdict=f"0.20 points better, 95 % interval {'0.05' if not j else '−0.10'} … 0.50: "
                f"{'shown' if not j else 'not shown'} to be better",
            )
            for j, place in enumerate(places)
            for first, second in combinations(names, 2)
        ],
    )


def empty() -> Result:
    """A result with one number that the set cannot show, and nothing else."""
    return Result(
        model="m",
        set="s",
        protocol="verification/1",
        settings={},
        counts={},
        headline="accuracy",
        figures={"accuracy": Figure(None, note="no genuine pair")},
    )


def _histogram(scores: np.ndarray) -> Curve:
    counts, _ = np.histogram(scores, BINS)
    return Curve(((BINS[:-1] + BINS[1:]) / 2).tolist(), counts.tolist())
