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
    embed,
    read_bin,
    verify,
    write_bin,
)
from models import create_model
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


# --- embed --------------------------------------------------------------------------------------


def test_an_embedding_is_the_sum_over_an_image_and_its_mirror_image() -> None:
    pixels = random_pixels(5)
    model = Projection().train()
    embeddings = embed(
        model, [png(p) for p in pixels], device=CPU, batch_size=2, autocast_dtype=None
    )
    weight = model.weight.detach().double().numpy()
    expected = sum(
        (view / 127.5 - 1).transpose(0, 3, 1, 2).reshape(5, -1) @ weight.T / np.sqrt(1 + 1e-5)
        for view in (pixels.astype(np.float64), pixels[:, :, ::-1].astype(np.float64))
    )
    assert embeddings.dtype == torch.float32
    assert not embeddings.requires_grad
    np.testing.assert_allclose(embeddings.numpy(), expected, rtol=1e-4, atol=1e-3)
    assert [shape[0] for _, _, shape in model.calls] == [2, 2, 2, 2, 1, 1]
    assert all(channels_last for _, channels_last, _ in model.calls)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_asked_autocast_reaches_the_model(dtype: torch.dtype) -> None:
    seen: list[tuple[bool, torch.dtype]] = []

    class Recorder(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            seen.append((torch.is_autocast_enabled("cpu"), images.dtype))
            return images.mean((2, 3))

    embeddings = embed(
        Recorder(),
        [png(p) for p in random_pixels(1)],
        device=CPU,
        batch_size=8,
        autocast_dtype=dtype,
    )
    assert seen == [(dtype != torch.float32, dtype)] * 2
    assert embeddings.dtype == torch.float32


def test_every_submodule_gets_its_own_mode_back_even_after_an_error() -> None:
    model = Projection().train()
    model.norm.eval()  # as a frozen batch norm
    images = [png(p) for p in random_pixels(2)]
    statistics = model.norm.running_mean.clone()
    embed(model, images, device=CPU, batch_size=2, autocast_dtype=None)
    assert (model.training, model.norm.training, model.dropout.training) == (True, False, True)
    assert torch.equal(model.norm.running_mean, statistics)

    with pytest.raises(ValueError, match="image 1"):
        embed(model, [images[0], b"no image"], device=CPU, batch_size=2, autocast_dtype=None)
    assert (model.training, model.norm.training, model.dropout.training) == (True, False, True)


def test_nothing_to_embed_is_an_error() -> None:
    for images, batch_size in (([], 8), ([png(random_pixels(1)[0])], 0)):
        with pytest.raises(ValueError, match="both must be positive"):
            embed(Projection(), images, device=CPU, batch_size=batch_size, autocast_dtype=None)


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
    assert "blocks.bin, from its image 20 on: " in told


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


def test_three_ranks_each_embed_a_third_and_agree_with_one(pair_file: Path) -> None:
    """40 images over 3 ranks: 14 each, of which the last two are padding."""
    others = start(verify_as_one_of_three, args=(pair_file, 1), nprocs=2, join=False)
    results = [verify_as_one_of_three(0, pair_file, 0)]
    while not others.join():
        pass
    results += [json.loads((pair_file.parent / f"{rank}.json").read_text()) for rank in (1, 2)]
    assert [result.pop("embedded") for result in results] == [14, 14, 14]
    assert results[0] == results[1] == results[2]
    alone = Verifier([pair_file], device=CPU, batch_size=8)(Projection())
    assert results[0] == pytest.approx(asdict(alone["blocks"]), abs=1e-9)


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


def test_an_untrained_network_embeds_the_real_set_the_same_in_any_batch_size(lfw_dev: Path) -> None:
    images = read_bin(lfw_dev).images[:24]
    torch.manual_seed(0)
    model = create_model("iresnet10", num_features=32, width=0.25)
    options = {"device": CPU, "autocast_dtype": None}
    one = embed(model, images, batch_size=24, **options)
    other = embed(model, images, batch_size=7, **options)
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
