from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import asdict, fields
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor, nn

from evaluation.verification import (
    PairSetError,
    Verification,
    Verifier,
    read_bin,
    verify,
    write_bin,
)
from tests.clock import LIMIT
from tests.ranks import start

CPU = torch.device("cpu")
LFW_DEV = Path(__file__).parents[3] / "shared/data/faces_lfw_dev/lfw_dev_val.bin"


def png(pixels: np.ndarray) -> bytes:
    """Encode (H, W, 3) uint8 without loss, so that what is decoded is known exactly."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="png")
    return file.getvalue()


def random_pixels(count: int, seed: int = 0) -> np.ndarray:
    """Blocks of random colors, lopsided so that a mirror image differs: (count, 112, 112, 3)."""
    blocks = np.random.default_rng(seed).integers(0, 256, (count, 7, 7, 3), dtype=np.uint8)
    return blocks.repeat(16, axis=1).repeat(16, axis=2)


def random_pairs(pairs: int, *, noise: float, seed: int = 0) -> tuple[Tensor, np.ndarray]:
    """Embeddings (2P, 16) of any norm whose genuine pairs differ by `noise`, and truth (P,)."""
    rng = np.random.default_rng(seed)
    same = rng.random(pairs) < 0.5
    first = rng.normal(size=(pairs, 16))
    second = np.where(same[:, None], first, rng.normal(size=(pairs, 16)))
    second = second + noise * rng.normal(size=(pairs, 16))
    stacked = np.stack([first, second], axis=1) * rng.uniform(0.1, 10, (pairs, 2, 1))
    return torch.from_numpy(stacked.reshape(2 * pairs, 16)).float(), same


class Projection(nn.Module):
    """A linear map of the pixels with a batch norm and dropout, to see the modes at work."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(8, 3 * 112 * 112, generator=generator) / 100)
        self.norm = nn.BatchNorm1d(8)
        self.dropout = nn.Dropout(0.5)
        self.calls: list[tuple[torch.dtype, bool, tuple[int, ...]]] = []

    def forward(self, images: Tensor) -> Tensor:
        channels_last = images.is_contiguous(memory_format=torch.channels_last)
        self.calls.append((images.dtype, channels_last, tuple(images.shape)))
        return self.dropout(self.norm(images.flatten(1) @ self.weight.to(images.dtype).T))


# --- verify -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("pairs", "noise"), [(60, 0.5), (60, 3.0), (107, 1.0)])
def test_accuracy_is_that_of_the_protocol_written_out(pairs: int, noise: float) -> None:
    """One pair, one threshold and one fold at a time; folds of unequal size where P is 107."""
    embeddings, same = random_pairs(pairs, noise=noise)
    distances = []
    for i in range(pairs):
        a, b = embeddings[2 * i].double(), embeddings[2 * i + 1].double()
        distances.append(float((a / a.norm() - b / b.norm()).square().sum()))

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

    result = verify(embeddings, same)
    assert result.accuracy == pytest.approx(np.mean(accuracies), abs=1e-12)
    assert result.accuracy_std == pytest.approx(np.std(accuracies), abs=1e-12)
    assert result.threshold == pytest.approx(np.mean(thresholds), abs=1e-12)


@pytest.mark.parametrize("noise", [0.5, 2.0])
def test_auc_and_tar_are_those_of_their_definitions(noise: float) -> None:
    embeddings, same = random_pairs(2500, noise=noise)
    cosines = torch.cosine_similarity(embeddings[0::2].double(), embeddings[1::2].double()).numpy()
    genuine, impostor = cosines[same], cosines[~same]
    result = verify(embeddings, same)

    won = (genuine[:, None] > impostor[None, :]).mean()
    assert result.auc == pytest.approx(won, abs=1e-9)

    allowed = int(1e-3 * len(impostor))
    assert allowed >= 1
    strictest_refused = np.sort(impostor)[-allowed - 1]
    assert result.tar_at_far == pytest.approx((genuine > strictest_refused).mean(), abs=1e-9)
    assert 0 < result.far <= 1e-3


def test_perfect_embeddings_score_one_and_their_norms_do_not_matter() -> None:
    embeddings, same = random_pairs(40, noise=0.0)
    result = verify(embeddings, same)
    assert (result.accuracy, result.accuracy_std) == (1.0, 0.0)
    assert (result.tar_at_far, result.far) == (1.0, 0.0)
    assert result.auc == pytest.approx(1.0)
    scales = torch.linspace(1e-3, 1e3, len(embeddings)).unsqueeze(1)
    scaled = verify(embeddings * scales, same)
    assert asdict(scaled) == pytest.approx(asdict(result), abs=1e-6)


def test_embeddings_all_alike_are_no_better_than_guessing() -> None:
    _, same = random_pairs(1000, noise=1.0)
    result = verify(torch.ones(2000, 4), same)
    assert result.accuracy == pytest.approx(0.5, abs=0.05)
    assert (result.auc, result.tar_at_far) == (0.5, 0.0)


def test_an_embedding_of_zeros_is_a_poor_match_and_not_an_error() -> None:
    embeddings, same = random_pairs(40, noise=0.0)
    embeddings[0] = 0
    assert 0.9 < verify(embeddings, same).accuracy <= 1.0


def test_results_are_plain_floats_that_json_takes() -> None:
    result = verify(*random_pairs(40, noise=1.0))
    assert all(type(getattr(result, field.name)) is float for field in fields(Verification))
    assert json.loads(json.dumps(asdict(result))) == asdict(result)


def test_what_cannot_be_verified_is_named() -> None:
    embeddings, same = random_pairs(40, noise=1.0)
    with pytest.raises(ValueError, match=r"\(79, 16\) and truth values of shape \(40,\)"):
        verify(embeddings[:79], same)
    with pytest.raises(ValueError, match="dtype int64; expected bool"):
        verify(embeddings, same.astype(np.int64))
    with pytest.raises(ValueError, match="9 pairs for 10 folds"):
        verify(embeddings[:18], same[:9])
    with pytest.raises(ValueError, match="all 40 pairs are impostor ones"):
        verify(embeddings, np.zeros(40, dtype=bool))
    with pytest.raises(ValueError, match="all 40 pairs are genuine ones"):
        verify(embeddings, np.ones(40, dtype=bool))
    embeddings[3, 5], embeddings[7, 0] = torch.nan, torch.inf
    with pytest.raises(ValueError, match="2 of 80 embeddings are not finite"):
        verify(embeddings, same)


# --- Verifier -----------------------------------------------------------------------------------


@pytest.fixture
def pair_file(tmp_path: Path) -> Path:
    """20 pairs of JPEGs, half genuine: the second image of those is a noisy copy of the first."""
    rng = np.random.default_rng(0)
    same = [i % 2 == 0 for i in range(20)]
    images = []
    for i, genuine in enumerate(same):
        first = random_pixels(1, seed=i)[0]
        second = first if genuine else random_pixels(1, seed=100 + i)[0]
        noisy = second + rng.normal(0, 60, second.shape)
        for pixels in (first, noisy.clip(0, 255).astype(np.uint8)):
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, format="jpeg", quality=90)
            images.append(file.getvalue())
    path = tmp_path / "blocks.bin"
    write_bin(path, images, same)
    return path


def test_sets_are_named_by_their_stems(pair_file: Path) -> None:
    other = pair_file.with_name("other.bin")
    pairs = read_bin(pair_file)
    write_bin(other, pairs.images, ~pairs.same)
    results = Verifier([pair_file, str(other)], device=CPU, batch_size=7)(Projection())
    assert list(results) == ["blocks", "other"]
    assert results["blocks"].auc == pytest.approx(1.0)
    assert results["other"].auc == pytest.approx(0.0)


def test_a_model_is_judged_in_eval_mode_and_comes_back_as_it_was(pair_file: Path) -> None:
    model = Projection().train()
    statistics = model.norm.running_mean.clone()
    results = [Verifier([pair_file], device=CPU)(model)["blocks"] for _ in range(2)]
    assert results[0] == results[1]  # no dropout
    assert (model.training, model.norm.training, model.dropout.training) == (True, True, True)
    assert torch.equal(model.norm.running_mean, statistics)


def test_two_sets_of_one_name_and_no_set_at_all_are_refused(pair_file: Path) -> None:
    with pytest.raises(ValueError, match="a second set named 'blocks'"):
        Verifier([pair_file, pair_file], device=CPU)
    with pytest.raises(PairSetError, match=r"missing\.bin does not exist"):
        Verifier([pair_file.with_name("missing.bin")], device=CPU)


def test_images_that_will_not_do_are_named_when_a_set_is_read(pair_file: Path) -> None:
    """By their headers: nothing is decoded yet."""
    with pytest.raises(PairSetError, match=r"blocks\.bin: image 0 has 112×112 pixels, not 64×64"):
        Verifier([pair_file], device=CPU, image_size=64)
    pairs = read_bin(pair_file)
    pairs.images[7] = b"not an image"
    write_bin(pair_file, pairs.images, pairs.same)
    with pytest.raises(PairSetError, match=r"blocks\.bin: image 7 cannot be read"):
        Verifier([pair_file], device=CPU)


def verify_with_a_broken_image(spawned: int, path: Path, first_rank: int) -> str:
    rank = first_rank + spawned
    dist.init_process_group(
        "gloo",
        init_method=f"file://{path.parent}/store",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=LIMIT),
    )
    try:
        verifier = Verifier([path], device=CPU, rank=rank, world_size=2, batch_size=8)
        with pytest.raises(PairSetError) as caught:
            verifier(Projection())
    finally:
        dist.destroy_process_group()
    (path.parent / f"{rank}.txt").write_text(str(caught.value))
    return str(caught.value)


def test_an_image_that_one_rank_cannot_decode_is_named_on_both(pair_file: Path) -> None:
    """The other would wait for its embeddings."""
    pairs = read_bin(pair_file)
    tables = pairs.images[25].index(b"\xff\xc4") + 5  # how many Huffman codes of each length
    pairs.images[25] = pairs.images[25].replace(
        pairs.images[25][tables : tables + 16], b"\xff" * 16, 1
    )
    write_bin(pair_file, pairs.images, pairs.same)
    other = start(verify_with_a_broken_image, args=(pair_file, 1), nprocs=1, join=False)
    told = verify_with_a_broken_image(0, pair_file, 0)
    while not other.join():
        pass
    assert told == (pair_file.parent / "1.txt").read_text()
    assert "blocks.bin: 1 images are bad: image 25 cannot be decoded" in told


def verify_as_one_of_three(spawned: int, path: Path, first_rank: int) -> dict[str, float]:
    rank = first_rank + spawned
    dist.init_process_group(
        "gloo",
        init_method=f"file://{path.parent}/store",
        rank=rank,
        world_size=3,
        timeout=timedelta(seconds=LIMIT),
    )
    try:
        model = Projection()
        results = Verifier([path], device=CPU, rank=rank, world_size=3, batch_size=8)(model)
    finally:
        dist.destroy_process_group()
    result = asdict(results["blocks"])
    result["embedded"] = sum(shape[0] for _, _, shape in model.calls) // 2
    (path.parent / f"{rank}.json").write_text(json.dumps(result))
    return result


def test_three_ranks_share_the_batches_and_agree_with_one_to_the_last_bit(pair_file: Path) -> None:
    """5 batches of 8 images: two ranks embed two of them, the third one."""
    others = start(verify_as_one_of_three, args=(pair_file, 1), nprocs=2, join=False)
    results = [verify_as_one_of_three(0, pair_file, 0)]
    while not others.join():
        pass
    results += [json.loads((pair_file.parent / f"{rank}.json").read_text()) for rank in (1, 2)]
    assert [result.pop("embedded") for result in results] == [16, 16, 8]
    assert results[0] == results[1] == results[2]
    alone = Verifier([pair_file], device=CPU, batch_size=8)(Projection())
    assert results[0] == asdict(alone["blocks"])


# --- the real set -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lfw_dev() -> Iterator[Path]:
    if not LFW_DEV.exists():
        pytest.skip(f"the LFW development set is not at {LFW_DEV}")
    return LFW_DEV


def test_pixels_as_embeddings_score_two_thirds_on_lfw(lfw_dev: Path) -> None:
    pairs = read_bin(lfw_dev)
    assert (len(pairs.images), int(pairs.same.sum())) == (2400, 600)
    pixels = np.stack(
        [
            np.asarray(Image.open(io.BytesIO(i)).convert("RGB").resize((28, 28)))
            for i in pairs.images
        ]
    )
    centered = torch.from_numpy(pixels / 127.5 - 1).float()  # (2P, 28, 28, 3)
    result = verify((centered + centered.flip(2)).flatten(1), pairs.same)
    assert result.accuracy == pytest.approx(0.65, abs=0.03)
    assert result.auc == pytest.approx(0.71, abs=0.03)
