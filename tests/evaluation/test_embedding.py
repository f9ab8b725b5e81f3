"""The loop that embeds images: right pixels, right order, any number of ranks, faults named."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from evaluation.embedding import Embedded, Load, decoder, embed_batches, eval_mode, on_pixels
from evaluation.pair_set import read_bin
from models import create_model
from tests.ranks import run_ranks
from training.distributed import World

CPU = torch.device("cpu")
SIZE = 16
LFW_DEV = Path(__file__).parents[3] / "shared/data/faces_lfw_dev/lfw_dev_val.bin"


def png(pixels: np.ndarray) -> bytes:
    """Encode (H, W, 3) uint8 without loss, so that what is decoded is known exactly."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="png")
    return file.getvalue()


def random_pixels(count: int) -> np.ndarray:
    """(count, SIZE, SIZE, 3) uint8, never like its mirror image."""
    return np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def reader(images: Sequence[bytes]) -> Load:
    return decoder(lambda places: [partial(bytes, images[i]) for i in places], image_size=SIZE)


def mean_of(pixels: Tensor) -> Tensor:
    """(B, 3, H, W) uint8 to (B, 3): something that tells images apart."""
    return pixels.float().mean((2, 3))


def embed_all(images: Sequence[bytes], **options: object) -> list[Embedded]:
    options = {"device": CPU, "image_size": SIZE, "batch_size": 4, **options}
    return list(embed_batches(mean_of, reader(images), range(len(images)), **options))


@pytest.mark.parametrize("threads", [1, 3])
def test_embeddings_come_in_order_in_batches_of_the_size_that_was_asked(threads: int) -> None:
    pixels = random_pixels(10)
    batches = embed_all([png(p) for p in pixels], threads=threads)
    assert [batch.places for batch in batches] == [range(4), range(4, 8), range(8, 10)]
    expected = torch.from_numpy(pixels).float().permute(0, 3, 1, 2).mean((2, 3))
    assert torch.equal(torch.cat([batch.embeddings for batch in batches]), expected)


def test_the_mirror_image_is_added_on_request_and_norms_are_without_it() -> None:
    pixels = random_pixels(5)

    def first_column(pixels: Tensor) -> Tensor:
        return pixels[:, :, :, 0].float().mean(2)  # (B, 3)

    images = reader([png(p) for p in pixels])
    batches = list(
        embed_batches(
            first_column, images, range(5), device=CPU, image_size=SIZE, batch_size=2, flip=True
        )
    )
    columns = torch.from_numpy(pixels).float()[:, :, [0, -1]].mean(1)  # (5, 2, 3)
    found = torch.cat([batch.embeddings for batch in batches])
    torch.testing.assert_close(found, columns.sum(1))
    norms = torch.cat([batch.norms for batch in batches])
    torch.testing.assert_close(norms, columns[:, 0].norm(dim=1))


def test_only_the_places_that_were_asked_are_read() -> None:
    images = [png(p) for p in random_pixels(10)]
    images[:6] = [b"never read"] * 6
    options = {"device": CPU, "image_size": SIZE, "batch_size": 3}
    batches = list(embed_batches(mean_of, reader(images), range(6, 10), **options))
    assert [batch.places for batch in batches] == [range(6, 9), range(9, 10)]
    assert not any(batch.faults for batch in batches)


def test_pixels_reach_the_network_in_channels_last_without_a_copy() -> None:
    seen = []

    def embed(pixels: Tensor) -> Tensor:
        seen.append((pixels.dtype, pixels.is_contiguous(memory_format=torch.channels_last)))
        return mean_of(pixels)

    images = reader([png(p) for p in random_pixels(2)])
    list(embed_batches(embed, images, range(2), device=CPU, image_size=SIZE, batch_size=2))
    assert seen == [(torch.uint8, True)]


def test_an_image_that_cannot_be_decoded_is_named_and_its_embedding_is_zero() -> None:
    images = [png(p) for p in random_pixels(7)]
    images[5] = b"no image"
    batches = embed_all(images)
    assert list(batches[0].faults) == []
    assert list(batches[1].faults) == [5]
    assert "cannot be decoded" in batches[1].faults[5]
    embeddings = torch.cat([batch.embeddings for batch in batches])
    assert (embeddings == 0).all(dim=1).tolist() == [False] * 5 + [True, False]


def test_no_images_are_no_batches() -> None:
    assert embed_all([]) == []


def embed_as_one_of(world: World) -> list[tuple[list[int], Tensor]]:
    """What a rank gets of 7 images in batches of 2."""
    images = [png(p) for p in random_pixels(7)]
    batches = embed_all(images, rank=world.rank, world_size=world.world_size, batch_size=2)
    return [(list(batch.places), batch.embeddings) for batch in batches]


@pytest.mark.slow
def test_every_rank_gets_all_batches_even_where_there_are_fewer_than_ranks(tmp_path: Path) -> None:
    """4 batches over 3 ranks: two of them have none in the second turn."""
    alone = embed_all([png(p) for p in random_pixels(7)], batch_size=2)
    for found in run_ranks(embed_as_one_of, world_size=3, folder=tmp_path):
        assert [places for places, _ in found] == [list(batch.places) for batch in alone]
        for (_, rows), batch in zip(found, alone):
            assert torch.equal(rows, batch.embeddings)


# --- on_pixels ----------------------------------------------------------------------------------


def test_pixels_are_normalized_and_embedded_without_a_gradient() -> None:
    pixels = torch.from_numpy(random_pixels(3)).permute(0, 3, 1, 2)
    weight = torch.randn(3 * SIZE * SIZE, 8, requires_grad=True)
    found = on_pixels(lambda images: images.flatten(1) @ weight, device=CPU)(pixels)
    assert (found.dtype, found.requires_grad) == (torch.float32, False)
    expected = (pixels.double() / 127.5 - 1).flatten(1) @ weight.detach().double()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_asked_autocast_reaches_the_network(dtype: torch.dtype) -> None:
    seen: list[tuple[bool, torch.dtype]] = []

    def network(images: Tensor) -> Tensor:
        seen.append((torch.is_autocast_enabled("cpu"), images.dtype))
        return images.mean((2, 3))

    pixels = torch.from_numpy(random_pixels(1)).permute(0, 3, 1, 2)
    embeddings = on_pixels(network, device=CPU, dtype=dtype)(pixels)
    assert seen == [(dtype != torch.float32, dtype)]
    assert embeddings.dtype == torch.float32


# --- eval_mode ----------------------------------------------------------------------------------


def test_every_submodule_gets_its_own_mode_back_even_after_an_error() -> None:
    model = nn.Sequential(nn.BatchNorm1d(8), nn.Dropout(0.5)).train()
    model[0].eval()  # as a frozen batch norm

    def judge() -> None:
        with eval_mode(model):
            assert not any(module.training for module in model.modules())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        judge()
    assert (model.training, model[0].training, model[1].training) == (True, False, True)


# --- real faces ---------------------------------------------------------------------------------


def test_an_untrained_network_embeds_the_real_set_the_same_in_any_batch_size() -> None:
    if not LFW_DEV.exists():
        pytest.skip(f"the LFW development set is not at {LFW_DEV}")
    images = read_bin(LFW_DEV).images[:24]
    torch.manual_seed(0)
    model = create_model("iresnet10", embedding_dim=32, width=0.25).eval()
    found = [
        torch.cat(
            [
                batch.embeddings
                for batch in embed_batches(
                    on_pixels(model, device=CPU),
                    decoder(
                        lambda places: [partial(bytes, images[i]) for i in places], image_size=112
                    ),
                    range(24),
                    device=CPU,
                    flip=True,
                    batch_size=size,
                )
            ]
        )
        for size in (24, 7)
    ]
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-3)
