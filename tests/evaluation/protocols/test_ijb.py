"""IJB's figures: templates pooled, 1:1 and 1:N as plain loops have them."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from evaluation.features import Features
from evaluation.protocols.ijb import open_ijb
from evaluation.protocols.protocol import Asked
from facestream import UserError
from tests.evaluation.protocols.drawn_ijb import (
    OPEN,
    QUICK,
    SIZE,
    WIDTH,
    Drawn,
    drawn,
    features_of,
    write,
)


def pooled(
    made: Drawn,
    rows: np.ndarray,
    *,
    norm: bool = True,
    detector: bool = True,
    out: set = frozenset(),
) -> dict[int, np.ndarray]:
    media: dict[int, dict[int, list[np.ndarray]]] = defaultdict(lambda: defaultdict(list))
    for i, ((name, template, medium), (_, score)) in enumerate(zip(made.faces, made.shapes)):
        row = rows[i].astype(np.float64)
        if not norm:
            row = row / math.sqrt(sum(x * x for x in row))
        if detector:
            row = row * score
        if name not in out:
            media[template][medium].append(row)
    templates = {}
    for template, of_template in media.items():
        total = sum(sum(images) / len(images) for images in of_template.values())
        templates[template] = total / math.sqrt(sum(x * x for x in total))
    return templates


def tar_at_far(scores: list[float], labels: list[int], limit: float) -> float:
    """Try every score as the threshold."""
    genuine = [s for s, label in zip(scores, labels) if label]
    impostor = [s for s, label in zip(scores, labels) if not label]
    best = 0.0
    for threshold in [*scores, math.inf]:
        if sum(s >= threshold for s in impostor) / len(impostor) <= limit:
            best = max(best, sum(s >= threshold for s in genuine) / len(genuine))
    return best


def searches(
    templates: dict[int, np.ndarray], gallery: dict[int, int], probes: dict[int, int]
) -> list[tuple[bool, int, float, float]]:
    """Of each probe: mated, the mate's rank, its score, and the first candidate's score."""
    found = []
    for probe, subject in probes.items():
        candidates = sorted(
            ((float(templates[probe] @ templates[t]), s) for t, s in gallery.items()), reverse=True
        )
        places = [i for i, (_, s) in enumerate(candidates) if s == subject]
        rank = places[0] + 1 if places else 0
        score = candidates[places[0]][0] if places else -2.0
        found.append((bool(places), rank, score, candidates[0][0]))
    return found


def fnir_at_fpir(found: list[tuple[bool, int, float, float]], limit: float) -> float:
    mated = [row for row in found if row[0]]
    alarms = [row[3] for row in found if not row[0]]
    best = 1.0
    for threshold in [-2.0, *(np.nextafter(a, 2) for a in alarms), *alarms]:
        if sum(a >= threshold for a in alarms) / len(alarms) <= limit:
            missed = sum(not (row[1] == 1 and row[2] >= threshold) for row in mated) / len(mated)
            best = min(best, missed)
    return best


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("detector", [True, False])
def test_one_to_one_is_that_of_plain_loops(tmp_path: Path, norm: bool, detector: bool) -> None:
    made = drawn()
    write(made, tmp_path / "set", images=False)
    ijb = open_ijb(tmp_path / "set", **OPEN, norm_weights=norm, detector_weights=detector)
    features = features_of(made)
    templates = pooled(made, features.embeddings, norm=norm, detector=detector)
    scores = [float(templates[one] @ templates[other]) for one, other, _ in made.pairs]
    labels = [label for _, _, label in made.pairs]
    result = ijb.judge(features, model="m", asked=QUICK)
    for limit in (0.1, 0.01):
        expected = tar_at_far(scores, labels, limit)
        assert 0.3 < expected < 1  # a set that tells right from wrong
        assert result.figures[f"tar@far={limit:g}"].value == pytest.approx(expected, abs=1e-12)
    assert result.figures["tar@far=1e-06"].value is None  # these pairs cannot show it
    expected = tar_at_far(scores, labels, 1e-4)
    assert ijb.scores(features)["tar@far=0.0001"] == pytest.approx(expected, abs=1e-12)
    settings = result.settings
    assert (settings["norm weighting"], settings["detector-score weighting"]) == (norm, detector)
    assert result.counts["genuine"] == sum(labels)
    assert result.counts["impostor"] == len(labels) - sum(labels)
    assert result.counts["templates"] == len(templates)


@pytest.mark.parametrize("name", ["ijbb", "ijbc"])
def test_one_to_many_is_that_of_plain_loops(tmp_path: Path, name: str) -> None:
    made = drawn(name, subjects=40)
    write(made, tmp_path / "set", images=False)
    ijb = open_ijb(tmp_path / "set", name=name, image_size=SIZE)
    features = features_of(made)
    result = ijb.judge(features, model="m", asked=QUICK)
    templates = pooled(made, features.embeddings)
    first, second, probes = made.lists
    each = [searches(templates, gallery, probes) for gallery in (first, second)]
    for rank in (1, 5, 10):
        shares = [np.mean([0 < r <= rank for m, r, _, _ in found if m]) for found in each]
        assert result.figures[f"rank-{rank}"].value == pytest.approx(np.mean(shares))
        assert result.figures[f"rank-{rank}, gallery 2"].value == pytest.approx(shares[1])
        assert result.curves["cmc"].y[rank - 1] == pytest.approx(np.mean(shares))
        as_one = [0 < r <= rank for _, r, _, _ in searches(templates, first | second, probes)]
        figure = result.figures[f"rank-{rank}, both galleries as one"]
        assert figure.value == pytest.approx(np.mean(as_one))
    assert 0.3 < result.figures["rank-1"].value < 1
    expected = [fnir_at_fpir(found, 0.1) for found in each]
    assert 0 < np.mean(expected) < 1
    assert result.figures["fnir@fpir=0.1"].value == pytest.approx(np.mean(expected))
    assert result.figures["fnir@fpir=0.1, gallery 1"].value == pytest.approx(expected[0])
    assert result.figures["fnir@fpir=0.01"].value is None
    assert "cannot show" in result.figures["fnir@fpir=0.01"].note
    curve = result.curves["fnir"]
    expected = [np.mean([fnir_at_fpir(found, limit) for found in each]) for limit in curve.x]
    assert curve.y == pytest.approx(expected)
    assert ijb.scores(features)["rank-1"] == result.figures["rank-1"].value
    assert result.counts["probes"] == len(probes)


def test_what_is_left_out_or_damaged_leaves_its_template(tmp_path: Path) -> None:
    made = drawn()
    ijb = open_ijb(write(made, tmp_path / "set", images=False), **OPEN)
    features = features_of(made)
    whole = next(t for t in made.lists[2] if sum(of == t for _, of, _ in made.faces) == 1)
    out = {name for name, template, _ in made.faces if template == whole}
    partly = next(t for t in made.lists[0] if sum(of == t for _, of, _ in made.faces) > 2)
    out.add(next(name for name, template, _ in made.faces if template == partly))
    templates = pooled(made, features.embeddings, out=out)
    assert whole not in templates
    assert partly in templates
    pairs = [pair for pair in made.pairs if whole not in pair[:2]]
    scores = [float(templates[one] @ templates[other]) for one, other, _ in pairs]
    expected = tar_at_far(scores, [label for _, _, label in pairs], 0.01)
    left = ijb.judge(features, model="m", asked=Asked(draws=0, without=frozenset(out)))
    damaged = {i: "is damaged" for i, (name, _, _) in enumerate(made.faces) if name in out}
    rows = features.embeddings.copy()
    rows[list(damaged)] = 0
    skipped = ijb.judge(Features(rows, features.norms, damaged), model="m", asked=QUICK)
    for result in (left, skipped):
        assert result.figures["tar@far=0.01"].value == pytest.approx(expected, abs=1e-12)
        assert result.counts["templates left out"] == 1
        assert result.counts["pairs left out"] == len(made.pairs) - len(pairs)
        assert result.counts["probes"] == len(made.lists[2]) - 1
    assert skipped.counts["damaged"] == len(out)


def test_leaving_everything_out_is_refused(tmp_path: Path) -> None:
    made = drawn()
    ijb = open_ijb(write(made, tmp_path / "set", images=False), **OPEN)
    probes = frozenset(name for name, template, _ in made.faces if template in made.lists[2])
    with pytest.raises(UserError):
        ijb.judge(features_of(made), model="m", asked=Asked(draws=0, without=probes))


def test_groups_are_the_searches_for_their_subjects(tmp_path: Path) -> None:
    made = drawn(subjects=40)
    ijb = open_ijb(write(made, tmp_path / "set", images=False), **OPEN)
    features = features_of(made)
    asked = Asked(draws=0, groups={str(s): "even" if s % 4 < 2 else "odd" for s in range(1, 39)})
    result = ijb.judge(features, model="m", asked=asked)
    templates = pooled(made, features.embeddings)
    for group, whole in (("even", (0, 1)), ("odd", (2, 3))):
        probes = {t: s for t, s in made.lists[2].items() if s % 4 in whole and s < 39}
        each = [searches(templates, gallery, probes) for gallery in made.lists[:2]]
        expected = np.mean([np.mean([r == 1 for m, r, _, _ in found if m]) for found in each])
        assert result.groups[group].figures["rank-1"].value == pytest.approx(expected)
        assert result.groups[group].counts["probes"] == len(probes)


@pytest.mark.slow
def test_intervals_hold_the_figure_and_shrink_with_more_people(tmp_path: Path) -> None:
    widths = []
    for subjects in (20, 90):
        made = drawn(subjects=subjects)
        ijb = open_ijb(write(made, tmp_path / str(subjects), images=False), **OPEN)
        result = ijb.judge(features_of(made), model="m", asked=Asked(draws=200))
        figure = result.figures["rank-1"]
        assert figure.low < figure.value < figure.high
        widths.append(figure.high - figure.low)
        band = result.curves["cmc"]
        assert all(low <= y <= high for low, y, high in zip(band.low, band.y, band.high))
        again = ijb.judge(features_of(made), model="m", asked=Asked(draws=200))
        assert again.figures == result.figures
    assert widths[1] < widths[0]


def test_models_are_compared_by_the_same_pairs_and_searches(tmp_path: Path) -> None:
    made = drawn(subjects=40)
    ijb = open_ijb(write(made, tmp_path / "set", images=False), **OPEN)
    features = {"good": features_of(made, noise=0.4), "poor": features_of(made, noise=0.9)}
    asked = Asked(draws=100)
    results = {name: ijb.judge(one, model=name, asked=asked) for name, one in features.items()}
    compared = {one.figure: one for one in ijb.compare(features, asked=asked)}
    assert {"rank-1", "rank-5", "rank-10", "fnir@fpir=0.1"} <= set(compared)
    for name, one in compared.items():
        good, poor = (results[model].figures[name].value for model in ("good", "poor"))
        assert one.difference.value == pytest.approx(good - poor)
    assert compared["rank-1"].verdict.endswith("shown to be better")


def test_a_network_that_gives_all_faces_one_embedding_finds_nobody(tmp_path: Path) -> None:
    made = drawn()
    ijb = open_ijb(write(made, tmp_path / "set", images=False), **OPEN)
    row = np.random.default_rng(0).standard_normal(WIDTH).astype(np.float32)
    count = len(made.faces)
    features = Features(np.tile(row, (count, 1)), np.ones(count, np.float32), {})
    assert ijb.judge(features, model="m", asked=QUICK).figures["rank-1"].value < 0.2


def test_without_the_lists_of_one_to_many_templates_are_the_clusters(tmp_path: Path) -> None:
    made = drawn()
    write(made, tmp_path, images=False)
    for path in (tmp_path / "meta").glob("*.csv"):
        path.unlink()
    result = open_ijb(tmp_path, **OPEN).judge(features_of(made), model="m", asked=Asked(draws=5))
    assert "rank-1" not in result.figures
    assert result.settings["clusters"] == "templates, since subjects are not known"
    assert str(result.interval["clusters"]).startswith("templates, as it is not known who they")


def test_an_image_may_be_of_two_templates(tmp_path: Path) -> None:
    made = drawn()
    (name, template, medium), shape = made.faces[0], made.shapes[0]
    probe = next(t for t in made.lists[2] if t != template)
    made.faces.append((name, probe, medium))
    made.shapes.append(shape)
    ijb = open_ijb(write(made, tmp_path / "set", images=False), **OPEN)
    assert len(ijb.images) == len(made.faces) - 1
    features = features_of(made)
    features = Features(features.embeddings[:-1], features.norms[:-1], {})
    templates = pooled(made, np.concatenate([features.embeddings, features.embeddings[:1]]))
    scores = [float(templates[one] @ templates[other]) for one, other, _ in made.pairs]
    expected = tar_at_far(scores, [label for _, _, label in made.pairs], 0.01)
    result = ijb.judge(features, model="m", asked=QUICK)
    assert result.figures["tar@far=0.01"].value == pytest.approx(expected, abs=1e-12)
