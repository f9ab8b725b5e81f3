"""Verification as a protocol: InsightFace's scores, full results, images embedded once."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.features import Embedder, Features, extract
from evaluation.images import encoded_images
from evaluation.pair_set import PairSetError, read_bin, write_bin
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


ASKED = Asked(draws=0)


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
    assert 0.6 < scores["accuracy"] < 0.75
    assert len(pairs.images) < 2 * len(read_bin(LFW_DEV).same)


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
