"""Verification as a protocol: InsightFace's scores, full results, images embedded once."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.features import Embedder, Features, extract
from evaluation.images import encoded_images
from evaluation.pair_set import PairSetError, write_bin
from evaluation.protocols.pair_lists import read_pair_list
from evaluation.protocols.pairs import Pairs, of_list, open_bin
from evaluation.protocols.protocol import Asked
from facestream import UserError

SIZE = 112
LFW_DEV = Path(__file__).parents[4] / "shared/data/faces_lfw_dev/lfw_dev_val.bin"


def jpeg(color: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (SIZE, SIZE), (color, 255 - color, 90)).save(file, format="jpeg")
    return file.getvalue()


def features_of(embeddings: np.ndarray) -> Features:
    norms = np.linalg.norm(embeddings, axis=1)
    return Features(embeddings.astype(np.float32), norms, {}, flip=True)


def random_set(pairs: int = 200, *, people: bool = True) -> tuple[Pairs, Features]:
    """Pairs over 60 images of 20 people, and embeddings that tell them apart mostly."""
    random = np.random.default_rng(0)
    who = np.arange(60) % 20
    first = random.integers(0, 60, pairs)
    second = np.where(random.random(pairs) < 0.5, (first + 20) % 60, random.integers(0, 60, pairs))
    second = np.where(second == first, (first + 1) % 60, second)
    names = [f"image {i}" for i in range(60)]
    images = encoded_images([jpeg(i) for i in range(60)], names=names, size=SIZE)
    found = Pairs(
        "random",
        images,
        first,
        second,
        who[first] == who[second],
        [f"person {i}" for i in who] if people else None,
    )
    rows = random.normal(size=(20, 16))[who] + 0.9 * random.normal(size=(60, 16))
    return found, features_of(rows * random.uniform(1, 20, (60, 1)))


def of_pairs(embeddings: np.ndarray, same: np.ndarray) -> tuple[Pairs, Features]:
    """P pairs of 2P images, of which pair i are embeddings 2i and 2i + 1."""
    names = [f"image {i}" for i in range(len(embeddings))]
    images = encoded_images([b""] * len(embeddings), names=names, size=SIZE)
    places = np.arange(len(embeddings))
    return Pairs("pairs", images, places[0::2], places[1::2], same), features_of(embeddings)


def scores_of(embeddings: np.ndarray, same: np.ndarray) -> dict[str, float]:
    pairs, features = of_pairs(embeddings, same)
    return pairs.scores(features)


def random_pairs(pairs: int, *, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (2P, 16) of any norm whose genuine pairs differ by `noise`, and truth (P,)."""
    random = np.random.default_rng(seed)
    same = random.random(pairs) < 0.5
    first = random.normal(size=(pairs, 16))
    second = np.where(same[:, None], first, random.normal(size=(pairs, 16)))
    second = second + noise * random.normal(size=(pairs, 16))
    stacked = np.stack([first, second], axis=1) * random.uniform(0.1, 10, (pairs, 2, 1))
    return stacked.reshape(2 * pairs, 16).astype(np.float32), same


def cosines_of(embeddings: np.ndarray) -> np.ndarray:
    unit = embeddings / np.linalg.norm(embeddings.astype(np.float64), axis=1, keepdims=True)
    return (unit[0::2] * unit[1::2]).sum(axis=1)


ASKED = Asked(draws=0)


@pytest.mark.slow
@pytest.mark.parametrize(("pairs", "noise"), [(60, 0.5), (60, 3.0), (107, 1.0)])
def test_accuracy_is_that_of_the_protocol_written_out(pairs: int, noise: float) -> None:
    """One pair, one threshold and one fold at a time; folds of unequal size where P is 107."""
    embeddings, same = random_pairs(pairs, noise=noise)
    distances = []
    for i in range(pairs):
        a, b = (embeddings[2 * i + k].astype(np.float64) for k in (0, 1))
        distances.append(float(np.square(a / np.sqrt(a @ a) - b / np.sqrt(b @ b)).sum()))

    sizes = [pairs // 10 + (fold < pairs % 10) for fold in range(10)]
    accuracies, thresholds = [], []
    for fold in range(10):
        test = range(sum(sizes[:fold]), sum(sizes[: fold + 1]))
        most_right, chosen = -1, 0.0
        for step in range(400):
            right = sum(
                (distances[i] < step * 0.01) == same[i] for i in range(pairs) if i not in test
            )
            if right > most_right:
                most_right, chosen = right, step * 0.01
        accuracies.append(sum((distances[i] < chosen) == same[i] for i in test) / len(test))
        thresholds.append(1 - chosen / 2)

    scores = scores_of(embeddings, same)
    assert scores["accuracy"] == pytest.approx(np.mean(accuracies), abs=1e-12)
    assert scores["accuracy_std"] == pytest.approx(np.std(accuracies), abs=1e-12)
    assert scores["threshold"] == pytest.approx(np.mean(thresholds), abs=1e-12)


@pytest.mark.parametrize("noise", [0.5, 2.0])
def test_auc_and_tar_are_those_of_their_definitions(noise: float) -> None:
    embeddings, same = random_pairs(6200, noise=noise)
    cosines = cosines_of(embeddings)
    genuine, impostor = cosines[same], cosines[~same]
    scores = scores_of(embeddings, same)

    won = (genuine[:, None] > impostor[None, :]).mean()
    assert scores["auc"] == pytest.approx(won, abs=1e-9)

    allowed = int(1e-3 * len(impostor))
    assert allowed >= 1
    strictest_refused = np.sort(impostor)[-allowed - 1]
    assert scores["tar_at_far"] == pytest.approx((genuine > strictest_refused).mean(), abs=1e-9)
    assert 0 < scores["far"] <= 1e-3


def test_perfect_embeddings_score_one_and_their_norms_do_not_matter() -> None:
    embeddings, same = random_pairs(40, noise=0.0)
    scores = scores_of(embeddings, same)
    assert (scores["accuracy"], scores["accuracy_std"]) == (1.0, 0.0)
    assert scores["auc"] == pytest.approx(1.0)
    scaled = embeddings * np.linspace(1e-3, 1e3, len(embeddings), dtype=np.float32)[:, None]
    assert scores_of(scaled, same) == pytest.approx(scores, abs=1e-6)


def test_embeddings_all_alike_are_no_better_than_guessing() -> None:
    _, same = random_pairs(6200, noise=1.0)
    scores = scores_of(np.ones((2 * len(same), 4)), same)
    assert scores["accuracy"] == pytest.approx(0.5, abs=0.05)
    assert (scores["auc"], scores["tar_at_far"]) == (0.5, 0.0)


def test_an_embedding_of_zeros_is_a_poor_match_and_not_an_error() -> None:
    embeddings, same = random_pairs(40, noise=0.0)
    embeddings[0] = 0
    assert 0.9 < scores_of(embeddings, same)["accuracy"] <= 1.0


@pytest.mark.parametrize(("pairs", "shown"), [(2999, False), (3000, True)])
def test_a_rate_that_a_set_is_too_small_to_show_is_no_score(pairs: int, shown: bool) -> None:
    """The rule of three: no false accept in N impostor pairs means a rate below 3/N."""
    same = np.arange(pairs + 100) < 100
    scores = scores_of(np.random.default_rng(0).normal(size=(2 * len(same), 4)), same)
    assert ("tar_at_far" in scores, "far" in scores) == (shown, shown)


def test_scores_are_plain_floats_that_json_takes() -> None:
    scores = scores_of(*random_pairs(6200, noise=1.0))
    names = ["accuracy", "accuracy_std", "threshold", "auc", "tar_at_far", "far"]
    assert list(scores) == names, "InsightFace's, which metrics.jsonl has"
    assert all(type(score) is float for score in scores.values())
    assert json.loads(json.dumps(scores)) == scores


def test_scores_and_a_full_result_agree() -> None:
    pairs, features = random_set()
    scores = pairs.scores(features)
    result = pairs.judge(features, model="m", asked=ASKED)
    for name in ("accuracy", "accuracy_std", "threshold", "auc"):
        assert result.figures[name].value == pytest.approx(scores[name], abs=1e-12), name
    assert 0.7 < scores["accuracy"] < 1
    assert result.counts["genuine"] + result.counts["impostor"] == 200
    assert result.counts["identities"] == 20
    assert result.figures["norm"].value == pytest.approx(features.norms.mean())
    assert (result.model, result.set, result.headline) == ("m", "random", "accuracy")


def test_pairs_of_what_is_damaged_or_left_out_are_counted_and_not_judged() -> None:
    pairs, features = random_set()
    broken = replace(features, damaged={3: "is cut off"})
    out = (pairs.first == 3) | (pairs.second == 3)
    result = pairs.judge(broken, model="m", asked=ASKED)
    assert result.counts["pairs left out"] == out.sum() > 0
    assert result.counts["damaged"] == 1
    by_name = pairs.judge(features, model="m", asked=replace(ASKED, without={"image 3"}))
    assert by_name.figures["accuracy"] == result.figures["accuracy"]
    only = Pairs("random", pairs.images, pairs.first[~out], pairs.second[~out], pairs.same[~out])
    assert pairs.scores(broken) == only.scores(features)


def test_pairs_that_are_listed_again_count_again_and_the_result_says_so() -> None:
    pairs, features = random_set()
    once = pairs.judge(features, model="m", asked=ASKED)
    listed = {(min(pair), max(pair)) for pair in zip(pairs.first, pairs.second)}
    assert once.counts["pairs repeated"] == len(pairs.same) - len(listed)
    more = replace(
        pairs,
        first=np.append(pairs.first, [*pairs.second[:3], 7]),
        second=np.append(pairs.second, [*pairs.first[:3], 7]),
        same=np.append(pairs.same, [*pairs.same[:3], True]),
    )
    again = more.judge(features, model="m", asked=ASKED)
    assert again.counts["pairs repeated"] == once.counts["pairs repeated"] + 3
    assert again.counts["pairs of an image with itself"] == 1
    assert again.counts["genuine"] == once.counts["genuine"] + 1 + pairs.same[:3].sum()


def test_a_set_without_repeated_pairs_says_nothing_of_them() -> None:
    pairs, features = of_pairs(*random_pairs(40, noise=1.0))
    counts = pairs.judge(features, model="m", asked=ASKED).counts
    assert not {"pairs repeated", "pairs of an image with itself"} & set(counts)


def test_a_quality_is_wanted_for_every_image() -> None:
    pairs, features = random_set()
    with pytest.raises(UserError, match="59 of 60 images have no quality, such as image 1"):
        pairs.judge(features, model="m", asked=replace(ASKED, quality={"image 0": 1.0}))


def test_folds_of_people_need_people() -> None:
    pairs, features = random_set(people=False)
    with pytest.raises(UserError, match="people"):
        pairs.judge(features, model="m", asked=replace(ASKED, disjoint_folds=True))


# --- .bin ---------------------------------------------------------------------------------------


def test_a_photograph_that_stands_in_many_pairs_is_embedded_once(tmp_path: Path) -> None:
    kinds = [jpeg(0), jpeg(80), jpeg(160), jpeg(240)]
    order = [0, 1, 0, 2, 1, 1, 3, 0] * 5
    same = [True, False, True, False] * 5
    write_bin(tmp_path / "small.bin", [kinds[i] for i in order], same)
    pairs = open_bin(tmp_path / "small.bin", image_size=SIZE)
    assert (pairs.name, len(pairs.images)) == ("small", 4)
    assert list(pairs.images.names) == ["image 0", "image 1", "image 3", "image 6"]
    read = [pairs.images.read(place) for pair in zip(pairs.first, pairs.second) for place in pair]
    assert read == [kinds[i] for i in order]
    assert pairs.same.tolist() == same


def test_ranks_keep_the_images_of_their_own_batches(tmp_path: Path) -> None:
    write_bin(tmp_path / "set.bin", [jpeg(6 * i) for i in range(40)], [True, False] * 10)
    share = open_bin(tmp_path / "set.bin", image_size=SIZE, batch_size=8, rank=1, world_size=2)
    assert len(share.images) == 40
    assert share.images.read(9) == jpeg(54)
    with pytest.raises(KeyError):
        share.images.read(3)


def test_sets_that_cannot_be_judged_are_named(tmp_path: Path) -> None:
    write_bin(tmp_path / "few.bin", [jpeg(i) for i in range(4)], [True, False])
    with pytest.raises(PairSetError, match=r"few\.bin: found 2 pairs for 10 folds"):
        open_bin(tmp_path / "few.bin", image_size=SIZE)
    write_bin(tmp_path / "one.bin", [jpeg(i) for i in range(40)], [True] * 20)
    with pytest.raises(PairSetError, match=r"one\.bin: all 20 pairs are genuine ones"):
        open_bin(tmp_path / "one.bin", image_size=SIZE)


def test_pixels_as_embeddings_score_two_thirds_on_lfw() -> None:
    if not LFW_DEV.exists():
        pytest.skip(f"the LFW development set is not at {LFW_DEV}")
    pairs = open_bin(LFW_DEV, image_size=SIZE)
    embedder = Embedder(
        lambda pixels: pixels.float().sub(127.5)[:, :, ::8, ::8].flatten(1),
        digest="pixels",
        image_size=SIZE,
        device=torch.device("cpu"),
    )
    features = extract(embedder, pairs.images)
    assert features is not None
    scores = pairs.scores(features)
    assert scores["accuracy"] == pytest.approx(0.65, abs=0.03)
    assert scores["auc"] == pytest.approx(0.71, abs=0.03)
    assert (2 * len(pairs.same), int(pairs.same.sum())) == (2400, 600)
    assert len(pairs.images) < 2400


# --- lists --------------------------------------------------------------------------------------


def test_a_list_over_a_folder_is_the_set_it_lists(tmp_path: Path) -> None:
    for person in "abcd":
        (tmp_path / "faces" / person).mkdir(parents=True)
        for i in range(2):
            (tmp_path / "faces" / person / f"{i}.jpg").write_bytes(jpeg(ord(person) + 20 * i))
    lines = [f"{p}/0.jpg,{q}/1.jpg,{int(p == q)}" for p in "abcd" for q in "abcd"]
    (tmp_path / "pairs.csv").write_text("\n".join(lines))
    listed = read_pair_list(tmp_path / "pairs.csv", tmp_path / "faces")
    pairs = of_list("faces", listed, folder=tmp_path / "faces", image_size=SIZE)
    assert sorted(pairs.images.names) == sorted(f"{p}/{i}.jpg" for p in "abcd" for i in range(2))
    first = [pairs.images.names[i] for i in pairs.first]
    second = [pairs.images.names[i] for i in pairs.second]
    assert [f"{a},{b},{int(s)}" for a, b, s in zip(first, second, pairs.same)] == lines
    assert pairs.people is not None
    assert all(name.startswith(f"{who}/") for name, who in zip(pairs.images.names, pairs.people))
