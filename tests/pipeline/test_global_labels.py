"""The labels of coming batches are those that all ranks' streams then have."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest
import torch

from pipeline.dali_loader import Loader
from pipeline.order import BalancedOrder, BlockOrder, GlobalOrder, WeightedOrder
from pipeline.records.index import open_index
from pipeline.records.recordio import RecordWriter, pack_image
from tests.pipeline.numbered_images import CPU, SIZE, encode, picture

COUNT, BATCH, BAD = 50, 12, 7
LABELS = np.arange(COUNT) // 4

ORDERS = {
    "global": (GlobalOrder(COUNT, seed=5), COUNT),
    "block": (BlockOrder(COUNT, seed=5, block=4, window=3), COUNT),
    "repeats": (WeightedOrder(GlobalOrder(75, seed=5), counts=[COUNT], shown=[75]), 75),
    "balanced": (BalancedOrder(LABELS, seed=5, global_batch=BATCH, images=3), COUNT),
}


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """One image cannot be decoded."""
    folder = tmp_path_factory.mktemp("labels")
    with RecordWriter(folder / "train.rec") as writer:
        for k in range(COUNT):
            image = b"no image" if k == BAD else encode(picture(k))
            writer.write(pack_image(image, float(LABELS[k]), k))
    return open_index(folder)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("order", ORDERS)
def test_they_are_known_ahead_through_the_epochs_and_from_any_step(index, order, world_size):
    which, records = ORDERS[order]
    loaders = [
        Loader(
            index,
            global_batch=BATCH,
            rank=rank,
            world_size=world_size,
            seed=5,
            order=which,
            epoch_records=records,
            device=CPU,
            image_size=SIZE,
            max_bad_fraction=0.1,
        )
        for rank in range(world_size)
    ]
    for loader in loaders:
        loader._bad.add({BAD: "cannot be decoded"})  # seen before
    first, count = 3, 2 * loaders[0].steps_per_epoch
    known = [loaders[-1].global_labels(first + step) for step in range(count)]
    streams = [loader.stream(*divmod(first, loader.steps_per_epoch)) for loader in loaders]
    for labels in known:
        assert labels.dtype == torch.int64
        assert torch.equal(labels, torch.cat([next(stream).labels for stream in streams]))
    for stream in streams:
        stream.close()


def test_an_image_that_turns_out_bad_is_replaced_in_what_comes_after(index):
    loader = Loader(
        index, global_batch=COUNT, device=CPU, image_size=SIZE, seed=5, max_bad_fraction=0.1
    )
    before = loader.global_labels(0)
    with closing(loader.stream(0)) as stream:
        labels = next(stream).labels
    assert torch.equal(loader.global_labels(0), labels)
    assert (before != labels).sum() == 1, "its neighbor is of another identity"
