"""1:N over folders: figures as plain loops have them; TinyFace's and SurvFace's layouts."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from evaluation.features import Embedder, Features, extract
from evaluation.images import ImagesError
from evaluation.metrics import searches as searches_module
from evaluation.protocols.identification import (
    Identification,
    IdentificationError,
    open_identification,
)
from evaluation.protocols.protocol import Asked
from evaluation.protocols.sets import open_set
from evaluation.result import Evaluation, Result
from tests.ranks import run_ranks
from training.distributed import World

SIZE = 16
WIDTH = 24
QUICK = Asked(draws=0)
OPEN = {"name": "own", "image_size": SIZE}


def write_images(folder: Path, names: list[str], *, size: int = SIZE) -> None:
    random = np.random.default_rng(len(names))
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)


def own_layout(people: int = 30, *, strangers: int = 0, distractors: int = 40) -> list[str]:
    """One to four images of each person in the gallery, and one to three probes."""
    random = np.random.default_rng(0)
    names = []
    for person in range(people + strangers):
        for part, most in (("gallery", 4), ("probe", 3)):
            if part == "probe" or person < people:
                count = int(random.integers(1, most + 1))
                names += [f"{part}/p{person}/{i}.png" for i in range(count)]
    return names + [f"distractors/{i}.png" for i in range(distractors)]


def features_of(found: Identification, *, noise: float = 1.0) -> Features:
    """Embeddings around a center of each person; distractors around none."""
    random = np.random.default_rng(5)
    centers: dict[str, np.ndarray] = {}
    rows = []
    for person in found.people:
        row = random.standard_normal(WIDTH)
        if person:
            row = noise * row + centers.setdefault(person, random.standard_normal(WIDTH))
        rows.append(row * random.uniform(1, 20))
    array = np.array(rows, np.float32)
    return Features(array, np.linalg.norm(array, axis=1).astype(np.float32), {})


# --- The reference: loops over Python numbers ---------------------------------------------------


class Candidate:
    def __init__(self, score: float, right: bool) -> None:
        self.score, self.right = score, right


def lists_of(found: Identification, rows: np.ndarray) -> list[list[Candidate]]:
    """Of each probe the gallery by falling score."""
    unit = [row / math.sqrt(sum(x * x for x in row)) for row in rows.astype(np.float64)]
    lists = []
    for i, part in enumerate(found.part):
        if part in ("gallery", "distractor"):
            continue
        candidates = [
            Candidate(float(unit[i] @ unit[j]), of == "gallery" and found.people[j] == who)
            for who in [found.people[i] if part == "probe" else None]
            for j, of in enumerate(found.part)
            if of in ("gallery", "distractor")
        ]
        lists.append(sorted(candidates, key=lambda c: c.score, reverse=True))
    return lists


def average_precision(candidates: list[Candidate]) -> float:
    """Down the list, as the area below precision over recall grows."""
    total = sum(c.right for c in candidates)
    area, seen, old_recall, old_precision = 0.0, 0, 0.0, 1.0
    for place, candidate in enumerate(candidates, start=1):
        seen += candidate.right
        recall, precision = seen / total, seen / place
        area += (recall - old_recall) * (old_precision + precision) / 2
        old_recall, old_precision = recall, precision
    return area


def fnir_at_fpir(lists: list[list[Candidate]], limit: float, rank: int) -> float:
    mated = [one for one in lists if any(c.right for c in one)]
    alarms = [one[0].score for one in lists if not any(c.right for c in one)]
    best = 1.0
    for threshold in [-2.0, *(math.nextafter(a, 2) for a in alarms)]:
        if sum(a >= threshold for a in alarms) / len(alarms) <= limit:
            hits = [any(c.right and c.score >= threshold for c in one[:rank]) for one in mated]
            best = min(best, 1 - sum(hits) / len(hits))
    return best


def check_closed_set(result: Result, lists: list[list[Candidate]]) -> None:
    mated = [one for one in lists if any(c.right for c in one)]
    for rank in (1, 5, 20):
        share = np.mean([any(c.right for c in one[:rank]) for one in mated])
        assert result.figures[f"rank-{rank}"].value == pytest.approx(share)
        assert result.curves["cmc"].y[rank - 1] == pytest.approx(share)
    expected = np.mean([average_precision(one) for one in mated])
    assert result.figures["mAP"].value == pytest.approx(expected)
    assert 0.3 < result.figures["rank-1"].value < 0.95
    assert result.counts["mated probes"] == len(mated)


# --- Numbers ------------------------------------------------------------------------------------


def test_ranks_and_map_are_those_of_plain_loops(tmp_path: Path) -> None:
    write_images(tmp_path, own_layout())
    found = open_identification(tmp_path, **OPEN)
    features = features_of(found)
    result = found.judge(features, model="m", asked=QUICK)
    check_closed_set(result, lists_of(found, features.embeddings))
    assert not any("fnir" in name for name in result.figures)
    assert result.counts["distractors"] == 40
    assert result.counts["identities"] == 30
    scores = found.scores(features)
    assert scores == {name: result.figures[name].value for name in ("rank-1", "rank-5", "rank-20")}


def test_blocks_of_any_height_give_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path, own_layout())
    found = open_identification(tmp_path, **OPEN)
    whole = found.judge(features_of(found), model="m", asked=QUICK)
    for block in (1, 1000):
        monkeypatch.setattr(searches_module, "_BLOCK", block)
        assert found.judge(features_of(found), model="m", asked=QUICK).figures == whole.figures


def test_fnir_counts_the_strangers_who_come_too_near(tmp_path: Path) -> None:
    write_images(tmp_path, own_layout(strangers=25))
    found = open_identification(tmp_path, **OPEN)
    features = features_of(found, noise=0.8)
    result = found.judge(features, model="m", asked=QUICK)
    lists = lists_of(found, features.embeddings)
    check_closed_set(result, lists)
    for rank, name in ((1, "fnir@fpir=0.1"), (20, "fnir@fpir=0.1, rank 20")):
        expected = fnir_at_fpir(lists, 0.1, rank)
        assert 0 < expected < 1
        assert result.figures[name].value == pytest.approx(expected)
    assert result.figures["fnir@fpir=0.01"].value is None
    curve = result.curves["fnir"]
    strangers = result.counts["probes"] - result.counts["mated probes"]
    assert (curve.x[0], curve.x[-1]) == pytest.approx((3 / strangers, 1)), "what they can show"
    expected = [fnir_at_fpir(lists, limit, 1) for limit in curve.x]
    assert curve.y == pytest.approx(expected)
    assert curve.y[0] > curve.y[-1]
    drawn = found.judge(features, model="m", asked=Asked(draws=30)).curves["fnir"]
    ends = np.array([drawn.low, drawn.y, drawn.high])
    assert (np.diff(ends, axis=0) >= 0).all()
    assert (ends[2] > ends[0]).any()


@pytest.mark.parametrize(("searches", "shown"), [(0, False), (3, False), (4, True)])
def test_there_is_no_curve_where_strangers_are_too_few_to_show_any(
    tmp_path: Path, searches: int, shown: bool
) -> None:
    write_images(tmp_path, [*own_layout(), *(f"probe/x{i}/0.png" for i in range(searches))])
    found = open_identification(tmp_path, **OPEN)
    result = found.judge(features_of(found), model="m", asked=QUICK)
    assert ("fnir" in result.curves) == shown


def test_groups_and_images_left_out(tmp_path: Path) -> None:
    write_images(tmp_path, own_layout())
    found = open_identification(tmp_path, **OPEN)
    features = features_of(found)
    groups = {f"p{person}": "young" for person in range(10)}
    out = frozenset(name for name in found.images.names if name.startswith("distractors"))
    result = found.judge(features, model="m", asked=Asked(draws=0, groups=groups, without=out))
    kept = [i for i, part in enumerate(found.part) if part != "distractor"]
    part, people = found.part[kept], [found.people[i] for i in kept]
    lists = lists_of(Identification("", found.images, part, people), features.embeddings[kept])
    check_closed_set(result, lists)
    probes = [who for who, of in zip(people, part) if of == "probe"]
    young = [one for who, one in zip(probes, lists) if int(who[1:]) < 10]
    expected = np.mean([one[0].right for one in young])
    assert result.groups["young"].figures["rank-1"].value == pytest.approx(expected)
    assert result.counts["left out"] == 40
    everyone = frozenset(found.images.names[i] for i in kept)
    with pytest.raises(IdentificationError, match="nobody is in the gallery"):
        found.judge(features, model="m", asked=Asked(without=everyone))


def test_groups_of_other_names_than_the_probes_are_refused_before_any_embedding(
    tmp_path: Path,
) -> None:
    write_images(tmp_path, own_layout())
    found = open_identification(tmp_path, **OPEN)
    distractor = next(name for name in found.images.names if name.startswith("distractors"))
    for groups in ({"somebody": "young"}, {distractor: "young"}):
        with pytest.raises(IdentificationError, match="none of the probes has a group"):
            found.check(Asked(groups=groups))
    found.check(Asked(groups={"p3": "young"}))


def test_damaged_images_take_no_part(tmp_path: Path) -> None:
    write_images(tmp_path, own_layout())
    found = open_identification(tmp_path, **OPEN)
    features = features_of(found)
    rows = features.embeddings.copy()
    damaged = {i: "is damaged" for i, name in enumerate(found.images.names) if "/0." in name}
    rows[list(damaged)] = 0
    skipped = found.judge(Features(rows, features.norms, damaged), model="m", asked=QUICK)
    out = frozenset(found.images.names[i] for i in damaged)
    left = found.judge(features, model="m", asked=Asked(draws=0, without=out))
    for name in ("rank-1", "rank-5", "rank-20", "mAP"):
        assert skipped.figures[name] == left.figures[name]
    assert skipped.counts["damaged"] == len(damaged)


def test_intervals_hold_the_figures(tmp_path: Path) -> None:
    write_images(tmp_path, own_layout(strangers=25))
    found = open_identification(tmp_path, **OPEN)
    result = found.judge(features_of(found), model="m", asked=Asked(draws=200))
    for name in ("rank-1", "mAP", "fnir@fpir=0.1"):
        figure = result.figures[name]
        assert figure.low < figure.value < figure.high
    assert result.interval["clusters"] == "people of the probes"
    assert result.interval["number of clusters"] == 55


def test_models_are_compared_by_the_same_searches(tmp_path: Path) -> None:
    write_images(tmp_path, own_layout(strangers=25))
    found = open_identification(tmp_path, **OPEN)
    features = {"good": features_of(found, noise=0.7), "poor": features_of(found, noise=1.4)}
    asked = Asked(draws=100)
    results = {name: found.judge(one, model=name, asked=asked) for name, one in features.items()}
    compared = {one.figure: one for one in found.compare(features, asked=asked)}
    names = ["rank-1", "rank-5", "rank-20", "mAP", "fnir@fpir=0.1", "fnir@fpir=0.1, rank 20"]
    assert list(compared) == names  # these searches cannot show an FPIR of 0.01
    for name, one in compared.items():
        good, poor = (results[model].figures[name].value for model in ("good", "poor"))
        assert one.difference.value == pytest.approx(good - poor)
        assert one.difference.low <= one.difference.value <= one.difference.high
    assert compared["rank-1"].verdict.endswith("shown to be better")
    same = found.compare({"a": features["good"], "b": features["good"]}, asked=asked)
    assert all("not shown to differ" in one.verdict for one in same)


def test_the_hardest_pairs_are_named_by_their_images(tmp_path: Path) -> None:
    write_images(tmp_path, own_layout())
    found = open_identification(tmp_path, **OPEN)
    features = features_of(found)
    result = found.judge(features, model="m", asked=QUICK)
    unit = features.embeddings / np.linalg.norm(features.embeddings, axis=1, keepdims=True)
    place = {name: i for i, name in enumerate(found.images.names)}
    for kind, same in (("false accepts", False), ("false rejects", True)):
        assert result.hardest[kind]
        for pair in result.hardest[kind]:
            a, b = place[pair.a], place[pair.b]
            assert pair.score == pytest.approx(float(unit[a] @ unit[b]), abs=1e-6)
            assert (found.people[a] == found.people[b]) == same
    lowest = [pair.score for pair in result.hardest["false rejects"]]
    assert lowest == sorted(lowest)


def test_a_network_that_gives_all_faces_one_embedding_finds_nobody(tmp_path: Path) -> None:
    write_images(tmp_path, own_layout())
    found = open_identification(tmp_path, **OPEN)
    count = len(found.images)
    row = np.random.default_rng(0).standard_normal(WIDTH).astype(np.float32)
    features = Features(np.tile(row, (count, 1)), np.ones(count, np.float32), {})
    assert found.judge(features, model="m", asked=QUICK).figures["rank-5"].value < 0.2


# --- Layouts and images -------------------------------------------------------------------------


@pytest.mark.parametrize("inside", ["", "Testing_Set/", "tinyface/Testing_Set/"])
def test_tinyface_as_it_comes(tmp_path: Path, inside: str) -> None:
    write_images(tmp_path / inside, ["Gallery_Match/12_1.png", "Gallery_Match/7_2.png"], size=24)
    write_images(tmp_path / inside, ["Probe/12_3.png", "Gallery_Distractor/d1.png"], size=20)
    (tmp_path / inside / "Probe" / "._12_3.png").write_bytes(b"of a Mac")
    found = open_set(f"tinyface:{tmp_path}", image_size=SIZE)
    people = dict(zip(found.images.names, found.people))
    assert people == {
        f"{inside}Gallery_Distractor/d1.png": "",
        f"{inside}Gallery_Match/12_1.png": "12",
        f"{inside}Gallery_Match/7_2.png": "7",
        f"{inside}Probe/12_3.png": "12",
    }
    pixels, faults = found.images.load(range(4))
    assert faults == {}
    assert pixels.shape == (4, SIZE, SIZE, 3)
    result = found.judge(features_of(found), model="m", asked=QUICK)
    assert (result.set, result.counts["distractors"]) == ("tinyface", 1)
    assert "stretched to 16×16" in result.settings["crops"]


def test_survface_as_it_comes(tmp_path: Path) -> None:
    inside = tmp_path / "Face_Identification_Test_Set"
    write_images(inside, ["gallery/100_cam1_1.png", "gallery/100_cam1_2.png"], size=24)
    write_images(inside, ["mated_probe/100_cam3_1.png", "unmated_probe/100_cam2_1.png"], size=20)
    found = open_set(f"survface:{tmp_path}", image_size=SIZE)
    assert list(found.part) == ["gallery", "gallery", "probe", "unmated"]
    result = found.judge(features_of(found), model="m", asked=QUICK)
    # Unmated probes are of nobody in the gallery, whatever their numbers are.
    assert result.counts["mated probes"] == 1
    assert result.figures["rank-1"].value == 1


def test_own_folders_are_a_set_by_name(tmp_path: Path) -> None:
    write_images(tmp_path / "door", own_layout())
    found = open_set(f"1n:{tmp_path / 'door'}+blur", image_size=SIZE)
    assert (found.name, found.headline) == ("door+blur", "rank-1")


def pixels_as_rows(pixels: Tensor) -> Tensor:
    return pixels[:, :, ::3, ::3].float().flatten(1)


def judged(world: World | None, folder: Path) -> Result | None:
    found = open_identification(folder, **OPEN)
    ranks = (world.rank, world.world_size) if world else (0, 1)
    embedder = Embedder(pixels_as_rows, "d", SIZE, torch.device("cpu"), 8, 1, *ranks)
    features = extract(embedder, found.images)
    return features and found.judge(features, model="m", asked=QUICK)


def test_two_ranks_agree_with_one(tmp_path: Path) -> None:
    write_images(tmp_path / "set", own_layout())
    alone = judged(None, tmp_path / "set")
    both = run_ranks(judged, tmp_path / "set", world_size=2, folder=tmp_path)
    assert both == [alone, None]
    assert '"protocol": "identification/1"' in Evaluation([], [alone]).as_json()


# --- Bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["a/1.png"], r"has no folders of gallery and probes, but a: expected gallery/ID"),
        (["gallery/p/1.png", "probe/p/1.txt"], r"probe holds no image"),
        (["gallery/p/1.png", "probe/q/1.png"], r"nobody of the probes is in the gallery"),
        (["gallery/p/1.png", "probe/1.png"], r"1.png: who is it\? Expected probe/ID/1.png"),
    ],
)
def test_folders_that_are_no_set_are_refused(tmp_path: Path, names: list[str], says: str) -> None:
    write_images(tmp_path, [name for name in names if name.endswith("png")])
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    with pytest.raises(IdentificationError, match=says):
        open_identification(tmp_path, **OPEN)


def test_images_of_ones_own_of_another_size_are_refused(tmp_path: Path) -> None:
    write_images(tmp_path, ["gallery/p/1.png", "probe/p/1.png"], size=SIZE + 1)
    with pytest.raises(ImagesError, match="has 17×17 pixels, not 16×16"):
        open_identification(tmp_path, **OPEN)
