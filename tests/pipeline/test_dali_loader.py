"""The stream of batches: right pixels, right labels, the same wherever it is taken up."""

import io
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from facestream import UserError
from pipeline import dali
from pipeline.augment import RECIPES, Augmentation, Draw, Recipe
from pipeline.dali_decode import choose_decode_device
from pipeline.dali_loader import Loader
from pipeline.order import permute
from pipeline.records.index import open_index
from pipeline.side_columns import SideColumns
from tests.pipeline.numbered_images import CPU, SIZE, WAYS, loader, picture, take

LFW = Path(__file__).parents[3] / "shared/data/faces_lfw_dev"


def test_batches_hold_the_decoded_pixels_in_the_order_of_the_permutation(index):
    images, labels = take(loader(index).stream(0), 4)
    order = permute(np.arange(48), num_records=50, seed=5, epoch=0)
    assert labels.tolist() == order.tolist()
    expected = np.stack([picture(k) for k in order]).transpose(0, 3, 1, 2)
    assert torch.equal(images, torch.from_numpy(expected))


def test_batches_are_uint8_channels_last_and_int64(index):
    batch = next(loader(index).stream(0))
    assert (batch.images.dtype, batch.labels.dtype) == (torch.uint8, torch.int64)
    assert batch.images.shape == (12, 3, SIZE, SIZE)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.dali
@pytest.mark.parametrize(
    ("apply", "found"),
    [
        (lambda images: images / 255.0, "32×32×3, float32"),
        (lambda images: dali.fn.resize(images, size=[16, 24]), "16×24×3, uint8"),
    ],
)
def test_a_recipe_that_leaves_other_images_than_it_took_is_refused(
    index, apply, found, monkeypatch
):
    monkeypatch.setitem(RECIPES, "mine", Recipe(lambda draw: {}, apply))
    message = rf"make images of {found}, expected 32×32×3, uint8"
    with (
        closing(loader(index, augment=("mine",)).stream(0)) as stream,
        pytest.raises(UserError, match=message),
    ):
        next(stream)


@WAYS
def test_a_batch_stays_what_it_was_while_the_stream_runs_on(index, augment):
    stream = loader(index, augment=augment).stream(0)
    batch = next(stream)
    images, labels = batch.images.clone(), batch.labels.clone()
    take(stream, 6)
    assert torch.equal(batch.images, images)
    assert torch.equal(batch.labels, labels)


def test_the_stream_runs_through_epochs_each_in_its_own_order(index):
    small = loader(index)
    assert (small.steps_per_epoch, small.dropped) == (4, 2)
    _, labels = take(small.stream(0), 8)
    for epoch in range(2):
        order = permute(np.arange(48), num_records=50, seed=5, epoch=epoch)
        assert labels[epoch * 48 :][:48].tolist() == order.tolist()


@pytest.mark.slow
@pytest.mark.dali
@pytest.mark.parametrize("resumed_world", [1, 2, 3])
def test_a_run_of_two_ranks_resumes_mid_epoch_in_any_world_with_the_same_pixels(
    index, resumed_world
):
    face = np.array([[0.34, 0.46], [0.66, 0.46], [0.5, 0.64], [0.37, 0.82], [0.63, 0.82]]) * SIZE
    points = np.repeat(face[None].astype(np.float32), len(index), axis=0)
    columns = SideColumns({"landmarks": points})
    everything = {"augment": tuple(RECIPES), "columns": columns}
    whole = [
        take(loader(index, **everything, rank=rank, world_size=2).stream(0), 3) for rank in range(2)
    ]
    resumed = [
        take(loader(index, **everything, rank=rank, world_size=resumed_world).stream(0, 2), 1)
        for rank in range(resumed_world)
    ]
    for part in range(2):  # images, labels
        third_step = torch.cat([share[part][12:] for share in whole])
        assert torch.equal(torch.cat([share[part] for share in resumed]), third_step)


@pytest.mark.dali
def test_augmentation_changes_pixels_but_not_labels_and_differs_between_epochs(index):
    plain, labels = take(loader(index).stream(0), 4)
    augmented = loader(index, augment=("light",))
    images, augmented_labels = take(augmented.stream(0), 4)
    assert torch.equal(labels, augmented_labels)
    assert not torch.equal(plain, images)
    later, later_labels = take(augmented.stream(1), 4)
    first = {int(label): image for label, image in zip(labels, images)}
    again = [(first[int(n)], image) for n, image in zip(later_labels, later) if int(n) in first]
    assert not any(torch.equal(a, b) for a, b in again)


@pytest.mark.dali
def test_geometry_turns_about_the_middle_of_the_image(monkeypatch):
    """Half a turn through DALI itself is both mirrors, to the pixel."""
    chosen = {"geometry.angle": 180.0, "geometry.scale": 1.0}
    monkeypatch.setattr(Draw, "__call__", lambda _, name, *range: np.full(1, chosen.get(name, 0.0)))
    draw = Draw(np.zeros(1, np.int64), seed=0, epoch=0, size=SIZE)
    matrix = RECIPES["geometry"].draw(draw)["matrix"]
    pipeline = dali.Pipeline(batch_size=1, num_threads=1, device_id=None)
    with pipeline:
        inputs = dali.fn.external_source(source=lambda: [picture(0)], batch=True)
        nodes = dali.fn.external_source(source=lambda: matrix, batch=True)
        pipeline.set_outputs(RECIPES["geometry"].apply(inputs, matrix=nodes))
    pipeline.build()
    turned = np.asarray(pipeline.run()[0][0])
    assert np.abs(turned.astype(int) - picture(0)[::-1, ::-1]).max() <= 1


def test_flip_mirrors_half_of_the_images_exactly(index):
    plain, _ = take(loader(index).stream(0), 16)
    flipped, _ = take(loader(index, augment=("flip",)).stream(0), 16)
    mirrored = torch.tensor(
        [torch.equal(a.flip(2), b) for a, b in zip(plain, flipped)], dtype=torch.float64
    )
    same = torch.tensor([torch.equal(a, b) for a, b in zip(plain, flipped)])
    assert bool((same | mirrored.bool()).all())
    assert abs(mirrored.mean() - 0.5) < 4 * (0.25 / len(plain)) ** 0.5


def test_draws_stay_in_their_ranges_with_their_frequencies():
    positions = np.arange(20_000)
    draw = Draw(positions, seed=1, epoch=0, size=112)
    light = RECIPES["light"].draw(draw)
    assert 0.7 <= light["brightness"].min() <= light["brightness"].max() <= 1.3
    grey = (light["saturation"] == 0).mean()
    assert abs(grey - 0.1) < 4 * (0.09 / len(positions)) ** 0.5
    matrix = RECIPES["geometry"].draw(draw)["matrix"]
    scale = np.sqrt(np.linalg.det(matrix[:, :, :2]))
    assert 0.92 - 1e-6 <= scale.min() <= scale.max() <= 1.08 + 1e-6
    center = matrix @ np.array([56.0, 56.0, 1.0])
    assert np.abs(center - 56).max() <= 0.04 * 112 + 1e-3


def test_unknown_or_repeated_recipes_are_refused():
    with pytest.raises(ValueError, match=r"augment=\['flap'\].*'flip'"):
        Augmentation(["flap"])
    with pytest.raises(ValueError, match="each recipe once"):
        Augmentation(["flip", "flip"])


def test_a_batch_larger_than_the_data_is_refused(index):
    with pytest.raises(ValueError, match="global batch of 60 does not fit 50 records"):
        loader(index, global_batch=60)


def test_decoding_on_a_gpu_that_is_not_there_is_refused(index):
    with pytest.raises(ValueError, match=r"decode=hybrid: device=cpu is no GPU"):
        loader(index, decode="hybrid")


def test_the_cpu_decodes_on_the_cpu():
    assert choose_decode_device(CPU)[0] == "cpu"


@pytest.mark.skipif(not LFW.exists(), reason="faces_lfw_dev is not on this machine")
def test_real_jpegs_decode_as_pillow_decodes_them():
    index = open_index(LFW)
    images, labels = take(Loader(index, global_batch=64, device=CPU).stream(0), 1)
    order = permute(np.arange(64), num_records=len(index), seed=0, epoch=0)
    assert labels.tolist() == index.labels(order).tolist()
    for i in range(0, 64, 9):
        pillow = np.asarray(Image.open(io.BytesIO(bytes(index.image(order[i])))))
        difference = np.abs(images[i].permute(1, 2, 0).numpy().astype(int) - pillow)
        assert difference.mean() < 1.0


@pytest.mark.gpu
@pytest.mark.parametrize(
    "decode",
    [pytest.param(decode, marks=pytest.mark.dali) for decode in ("gpu", "hybrid", "cpu")]
    + ["without DALI"],
)
def test_a_gpu_gets_the_batches_the_cpu_gets(index, decode, monkeypatch):
    if decode == "without DALI":
        monkeypatch.setitem(sys.modules, "nvidia.dali", None)
        decode = "hybrid"
    device = torch.device("cuda", 0)
    images, labels = take(loader(index, device=device, decode=decode).stream(0), 4)
    expected, expected_labels = take(loader(index).stream(0), 4)
    assert torch.equal(labels.cpu(), expected_labels)
    assert (images.cpu().int() - expected.int()).abs().float().mean() < 1.0


@pytest.mark.dali
def test_threads_mirror_the_images_that_dali_would(index):
    plain = loader(index, augment=("flip:0.7",))
    through_dali = loader(index, augment=("flip:0.7",))
    through_dali._augmentation = Augmentation(("flip:0.7",))
    assert (plain.uses_dali, through_dali.uses_dali) == (False, True)
    images, labels = take(plain.stream(0), 4)
    expected, expected_labels = take(through_dali.stream(0), 4)
    assert torch.equal(images, expected)
    assert torch.equal(labels, expected_labels)
