"""Mean embeddings: which images count, and that bad ones do not."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import normalize

from pipeline.collection import Collection
from pipeline.records.index import open_index
from pipeline.records.recordio import RecordWriter, pack_image
from training.step.precision import choose_precision
from training.weights.mean_embeddings import mean_embeddings

SIZE = 16


class Center(nn.Module):
    """Embeds an image as its middle pixel, in [-1, 1]; a white one as what is not finite."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pixel = images[:, :, SIZE // 2, SIZE // 2]
        return torch.where((pixel == 1).all(dim=1, keepdim=True), torch.inf, pixel)


def write(folder, images: list[tuple[int, object]]) -> Collection:
    """A set of (label, color or bytes) in this order."""
    with RecordWriter(folder / "train.rec") as writer:
        for key, (label, image) in enumerate(images):
            if not isinstance(image, bytes):
                file = io.BytesIO()
                Image.new("RGB", (SIZE, SIZE), tuple(image)).save(file, "PNG")
                image = file.getvalue()
            writer.write(pack_image(image, float(label), key))
    return Collection.of(open_index(folder / "train.rec"))


def means(records, classes, world, *, subcenters=1, owned=None):
    return mean_embeddings(
        Center(),
        records,
        np.array(classes),
        owned=owned or slice(0, len(classes)),
        subcenters=subcenters,
        embedding_dim=3,
        image_size=SIZE,
        world=world,
        precision=choose_precision(world.device, "fp32"),
    )


def unit(color) -> torch.Tensor:
    return normalize(torch.tensor(color, dtype=torch.float32) / 127.5 - 1, dim=0)


@pytest.mark.parametrize("count", [1, 31, 32, 33, 63, 100])
def test_at_most_32_images_spread_over_all_count(tmp_path, world, count):
    """Of n images between those of another, number k does where 32 · k / n reaches a new whole."""
    colors = [(k, 200, 3 * k % 256) for k in range(count)]
    noise = [(0, (255, 0, 0)), (2, (0, 0, 255))]
    records = write(tmp_path, [*noise, *((1, color) for color in colors), *noise])
    seen: dict[int, int] = {}
    for k in range(count):
        seen.setdefault(32 * k // count, k)
    assert len(seen) == min(count, 32)
    expected = normalize(sum(unit(colors[k]) for k in seen.values()), dim=0)
    torch.testing.assert_close(means(records, [1], world)[0], expected)


def test_images_that_cannot_be_decoded_or_embedded_do_not_count(tmp_path, world):
    white = (255, 255, 255)
    records = write(
        tmp_path,
        [(0, b"none"), (0, (9, 9, 99)), (1, b"none"), (1, white), (2, white), (2, (1, 2, 3))],
    )
    found = means(records, [0, 1, 2, 7], world)
    torch.testing.assert_close(found[0], unit((9, 9, 99)))
    torch.testing.assert_close(found[2], unit((1, 2, 3)))
    assert not found[[1, 3]].any(), "zeros where there is nothing to go by"


def test_only_what_is_owned_is_given_whatever_else_is_embedded(tmp_path, world):
    records = write(tmp_path, [(k % 5, (40 * (k % 5), 100, k)) for k in range(300)])
    whole = means(records, [0, 2, 3, 4], world)
    assert torch.equal(means(records, [0, 2, 3, 4], world, owned=slice(1, 3)), whole[1:3])
    assert means(records, [0, 2, 3, 4], world, owned=slice(4, 4)).shape == (0, 3)


def test_subcenters_share_the_images(tmp_path, world):
    red, blue = (200, 0, 0), (0, 0, 200)
    records = write(tmp_path, [*[(0, red), (0, blue)] * 3, (1, red)])
    found = means(records, [0, 1], world, subcenters=2)
    torch.testing.assert_close(found[0], torch.cat([unit(red), unit(blue)]))
    torch.testing.assert_close(found[1], torch.cat([unit(red), unit(red)]))
