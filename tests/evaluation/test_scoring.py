"""A network scored by all ranks together: the same to the bit as by one, and what is damaged."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.embedding import on_pixels
from evaluation.features import Embedder, NonFiniteEmbeddingsError
from evaluation.images import ImagesError
from evaluation.pair_set import read_bin, write_bin
from evaluation.protocols.pairs import Pairs, open_bin
from evaluation.scoring import Scored, score
from facestream import UserError
from tests.ranks import run_ranks
from training.distributed import World

CPU = torch.device("cpu")
SIZE = 112


def random_pixels(seed: int) -> np.ndarray:
    """Blocks of random colors, lopsided so that a mirror image differs: (112, 112, 3)."""
    blocks = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    return blocks.repeat(16, axis=0).repeat(16, axis=1)


@pytest.fixture
def pair_file(tmp_path: Path) -> Path:
    """20 pairs of JPEGs, half genuine: the second image of those is a noisy copy of the first."""
    rng = np.random.default_rng(0)
    same = [i % 2 == 0 for i in range(20)]
    images = []
    for i, genuine in enumerate(same):
        first = random_pixels(i)
        second = first if genuine else random_pixels(100 + i)
        noisy = second + rng.normal(0, 60, second.shape)
        for pixels in (first, noisy.clip(0, 255).astype(np.uint8)):
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, format="jpeg", quality=90)
            images.append(file.getvalue())
    path = tmp_path / "blocks.bin"
    write_bin(path, images, same)
    return path


class Projecting:
    """A linear map of the pixels, which counts images."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self._weight = torch.randn(8, 3 * SIZE * SIZE, generator=generator) / 100
        self.images = 0

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        self.images += len(pixels)
        return pixels.flatten(1) @ self._weight.T


def scored(path: Path, network: Any, *, rank: int = 0, world_size: int = 1, **how: Any) -> Scored:
    test_set = open_bin(path, image_size=SIZE, batch_size=8, rank=rank, world_size=world_size)
    embedder = Embedder(
        on_pixels(network, device=CPU),
        digest="",
        image_size=SIZE,
        device=CPU,
        batch_size=8,
        rank=rank,
        world_size=world_size,
    )
    return score(embedder, test_set, model="blocks", **how)


def test_scores_come_with_a_result_and_what_shows_it(pair_file: Path) -> None:
    found = scored(pair_file, Projecting(), draws=20, sample=6, pictures=True)
    assert next(iter(found.scores)) == "accuracy"
    assert found.scores["auc"] == pytest.approx(1.0)
    assert found.result is not None
    assert found.result.figures["accuracy"].value == found.scores["accuracy"]
    assert (found.result.model, found.result.set) == ("blocks", "blocks")
    assert found.sample is not None
    assert found.sample.names == tuple(f"image {i}" for i in range(6))
    assert found.sample.embeddings.shape == (6, 8)
    hard = {n for pairs in found.result.hardest.values() for p in pairs for n in (p.a, p.b)}
    assert found.pictures.keys() == hard | set(found.sample.names)
    assert Image.open(io.BytesIO(found.pictures["image 0"])).size == (SIZE, SIZE)


def test_nothing_is_shown_that_is_not_asked_for(pair_file: Path) -> None:
    found = scored(pair_file, Projecting())
    assert (found.sample, found.pictures) == (None, {})
    assert found.result is not None
    assert not found.result.interval
    assert not scored(pair_file, Projecting(), sample=5).pictures


def test_the_main_figure_is_the_first_of_the_scores(pair_file: Path, monkeypatch) -> None:
    monkeypatch.setattr(Pairs, "headline", "auc")
    assert list(scored(pair_file, Projecting()).scores)[:2] == ["auc", "accuracy"]


def test_a_set_that_has_scores_and_no_result_says_so(pair_file: Path, monkeypatch, caplog) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise UserError("no genuine pair of a group")

    monkeypatch.setattr(Pairs, "judge", refuse)
    found = scored(pair_file, Projecting(), pictures=True)
    assert found.scores["auc"] == pytest.approx(1.0)
    assert (found.result, found.pictures) == (None, {})
    assert "blocks has scores but no curves: no genuine pair of a group" in caplog.text


def test_a_network_that_has_diverged_cannot_be_scored(pair_file: Path) -> None:
    with pytest.raises(NonFiniteEmbeddingsError, match="40 of 40 embeddings are not finite"):
        scored(pair_file, lambda pixels: torch.full((len(pixels), 3), torch.nan))


# --- several ranks ------------------------------------------------------------------------------


def on_rank(world: World) -> dict[str, int]:
    return {"rank": world.rank, "world_size": world.world_size}


def score_a_share(world: World, path: Path) -> tuple[Scored, int]:
    network = Projecting()
    how = {"draws": 20, "sample": 30, "pictures": True}
    return scored(path, network, **on_rank(world), **how), network.images // 2


@pytest.mark.slow
def test_three_ranks_share_the_batches_and_agree_with_one_to_the_last_bit(
    pair_file: Path, tmp_path: Path
) -> None:
    """5 batches of 8 images: two ranks embed two of them, the third one. The first has it all."""
    found = run_ranks(score_a_share, pair_file, world_size=3, folder=tmp_path)
    assert [images for _, images in found] == [16, 16, 8]
    alone = scored(pair_file, Projecting(), draws=20, sample=30, pictures=True)
    assert all(one.scores == alone.scores for one, _ in found)
    first, *others = (one for one, _ in found)
    assert first.result == alone.result
    assert first.pictures == alone.pictures
    assert np.array_equal(first.sample.embeddings, alone.sample.embeddings)
    assert all((one.result, one.sample, one.pictures) == (None, None, {}) for one in others)


def score_a_damaged_set(world: World, path: Path) -> str:
    with pytest.raises(ImagesError) as caught:
        scored(path, Projecting(), **on_rank(world))
    return str(caught.value)


@pytest.mark.slow
def test_an_image_that_one_rank_cannot_decode_is_named_on_both(
    pair_file: Path, tmp_path: Path
) -> None:
    """The other would wait for its embeddings."""
    pairs = read_bin(pair_file)
    tables = pairs.images[25].index(b"\xff\xc4") + 5  # how many Huffman codes of each length
    pairs.images[25] = pairs.images[25].replace(
        pairs.images[25][tables : tables + 16], b"\xff" * 16, 1
    )
    write_bin(pair_file, pairs.images, pairs.same)
    messages = run_ranks(score_a_damaged_set, pair_file, world_size=2, folder=tmp_path)
    assert messages[0] == messages[1]
    assert "blocks: 1 of 40 images are bad: image 25 cannot be decoded" in messages[0]


def refuse(*_: object) -> None:
    raise UserError("no scores")


def score_what_has_no_scores(world: World, path: Path) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pairs, "scores", refuse)
        with pytest.raises(UserError) as caught:
            scored(path, Projecting(), **on_rank(world))
    return str(caught.value)


@pytest.mark.slow
def test_an_error_of_the_rank_that_judges_is_every_ranks(pair_file: Path, tmp_path: Path) -> None:
    messages = run_ranks(score_what_has_no_scores, pair_file, world_size=2, folder=tmp_path)
    assert messages == ["no scores"] * 2
