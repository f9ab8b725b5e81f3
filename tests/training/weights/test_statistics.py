"""BatchNorms that were folded away get statistics of images, and embeddings stay as they are."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from evaluation.embedding import on_pixels
from tests.models.small import SIZE, trained
from training.weights.statistics import measure_statistics, some_images

CPU = torch.device("cpu")


def faces(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", ["iresnet10", "mbf"])
def test_embeddings_stay_and_training_begins_with_them(name):
    """With all BatchNorms measured, training mode gives of these images what evaluation does."""
    network, pixels = trained(name).eval(), faces(40)
    norms = [key for key, one in network.named_modules() if hasattr(one, "running_mean")]
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    before = on_pixels(network, device=CPU)(images)
    as_it_was = copy.deepcopy(network).train()
    changed = measure_statistics(network, norms, pixels, device=CPU)
    assert changed.keys() == {
        f"{norm}.{key}"
        for norm in norms
        for key in ("weight", "bias", "running_mean", "running_var")
    }
    after = on_pixels(network, device=CPU)(images)
    assert ((after - before).norm(dim=1) / before.norm(dim=1)).max() < 1e-5
    in_training = on_pixels(network.train(), device=CPU)(images)
    assert ((in_training - before).norm(dim=1) / before.norm(dim=1)).max() < 1e-2
    assert (on_pixels(as_it_was, device=CPU)(images) - before).norm() > before.norm() / 10


def test_moments_do_not_depend_on_the_batches():
    pixels = faces(70)
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten()).eval()
    measure_statistics(network, ["0"], pixels, device=CPU)
    values = torch.from_numpy(pixels).double() / 127.5 - 1
    torch.testing.assert_close(network[0].running_mean.double(), values.mean((0, 1, 2)))
    expected = values.var((0, 1, 2), correction=0)
    torch.testing.assert_close(network[0].running_var.double(), expected, rtol=1e-5, atol=0)


def test_damaged_images_are_left_out():
    pixels = faces(9)

    def load(places: range):
        return pixels[places.start : places.stop], {0: "cut"} if places.start % 4 == 0 else {}

    found = some_images(load, 9, count=5)  # 0, 2, 4, 6 and 8
    assert np.array_equal(found, pixels[[2, 6]])
    assert len(some_images(load, 0)) == 0
