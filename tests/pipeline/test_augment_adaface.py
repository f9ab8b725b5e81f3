"""The adaface recipe against its source: OpenCV's resizing, torchvision's windows and colors."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from pipeline.augment import RECIPES, Draw
from synthetic import render
from tests.pipeline.test_augment import SIZE, apply

pytestmark = pytest.mark.dali

COUNT = 20_000
KINDS = ("nearest", "linear", "cubic", "lanczos", "area")


@pytest.fixture(scope="module")
def faces() -> np.ndarray:
    """(12, SIZE, SIZE, 3) uint8, with noise of 6 levels on them: smooth ones would show less."""
    noise = np.random.default_rng(0).normal(0, 6, (12, SIZE, SIZE, 3))
    faces = np.stack([render(k, 0) for k in range(12)])
    return np.clip(np.rint(faces + noise), 0, 255).astype(np.uint8)


def drawn(count: int = COUNT, *, size: int = SIZE) -> dict[str, np.ndarray]:
    return RECIPES["adaface"].draw(Draw(np.arange(count), seed=3, epoch=1, size=size))


def adaface(images: np.ndarray, arguments: dict[str, np.ndarray], branch: str) -> np.ndarray:
    """The images with one branch taken, by all of them."""
    alone = {name: np.full(len(images), name == branch) for name in ("cropped", "resized", "relit")}
    return apply(["adaface"], images, list((arguments | alone).values()))


def kinds_of(arguments: dict[str, np.ndarray], way: str) -> np.ndarray:
    """(B,) numbers among KINDS."""
    return np.where(arguments[f"{way}_area"], KINDS.index("area"), arguments[f"{way}_kind"])


def weights(kind: str, before: int, after: int) -> np.ndarray:
    """(after, before) of a resizing, from its definition."""
    scale = before / after
    if kind == "nearest":
        return np.eye(before)[np.floor(np.arange(after) * scale + 1e-9).astype(int)]
    if kind == "area":
        low, high = np.arange(after) * scale, np.arange(1, after + 1) * scale
        cells = np.arange(before)
        shared = np.minimum(high[:, None], cells + 1) - np.maximum(low[:, None], cells)
        return np.maximum(shared, 0) / scale
    center = np.clip((np.arange(after) + 0.5) * scale - 0.5, 0, before - 1)
    return np.maximum(0, 1 - np.abs(center[:, None] - np.arange(before)))


def resized(images: np.ndarray, kind: str, after: int) -> np.ndarray:
    by = weights(kind, images.shape[1], after)
    rows = np.tensordot(by, images.astype(float), (1, 1))  # (after, B, before, 3)
    return np.clip(np.rint(np.tensordot(rows, by, (2, 1)).transpose(1, 0, 3, 2)), 0, 255)


@pytest.mark.slow
@pytest.mark.parametrize("down", ["nearest", "linear", "area"])
@pytest.mark.parametrize("up", ["nearest", "linear", "area"])
def test_resolution_is_lowered_within_a_level_of_opencvs_definitions(faces, down, up):
    arguments = drawn(4_000)
    there, back = (kinds_of(arguments, way) for way in ("down", "up"))
    wanted = (there == KINDS.index(down)) & (back == KINDS.index(up))
    pick = np.flatnonzero(wanted)[:48]
    arguments = {name: values[pick] for name, values in arguments.items()}
    images = faces[np.arange(len(pick)) % len(faces)]
    out = adaface(images, arguments, "resized").astype(float)
    sides = arguments["down_size"][:, 0].astype(int)
    off = [
        np.abs(out[i] - resized(resized(images[i : i + 1], down, side), up, SIZE)[0]).mean()
        for i, side in enumerate(sides)
    ]
    assert np.mean(off) < 1
    assert max(off) < 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cubic", "lanczos"])
def test_cubic_and_lanczos_keep_a_slope_and_do_not_average(faces, kind):
    """DALI's own, whose coefficients differ a little from OpenCV's: near its linear one."""
    arguments = drawn(4_000)
    pick = np.flatnonzero(kinds_of(arguments, "down") == KINDS.index(kind))[:48]
    arguments = {name: values[pick] for name, values in arguments.items()}
    ramp = np.broadcast_to(2 * np.arange(SIZE)[:, None], (len(pick), SIZE, SIZE, 3))
    out = adaface(np.ascontiguousarray(ramp, np.uint8), arguments, "resized").astype(float)
    side = arguments["down_size"][:, 0]
    inner = slice(SIZE // 4, -SIZE // 4)
    nearest = kinds_of(arguments, "up") == 0
    off = np.abs(out - ramp)[:, inner].mean((1, 2, 3))
    assert (off[~nearest] <= 1 + SIZE / side[~nearest]).all()


def test_each_interpolation_is_drawn_alike_there_and_back():
    arguments = drawn()
    both = kinds_of(arguments, "down") * 5 + kinds_of(arguments, "up")
    counts = np.bincount(both, minlength=25)
    bound = 5 * np.sqrt(COUNT / 25)
    assert (np.abs(counts - COUNT / 25) < bound).all()


def test_a_window_is_a_rectangle_on_black_of_the_areas_and_sides_that_it_says(faces):
    white = np.full((300, SIZE, SIZE, 3), 255, np.uint8)
    out = adaface(white, drawn(300), "cropped")
    assert set(np.unique(out)) <= {0, 255}
    left = out[..., 0] == 255
    rows, columns = left.any(2).sum(1), left.any(1).sum(1)
    assert np.array_equal(left.sum((1, 2)), rows * columns), "a rectangle"
    area, ratio = rows * columns / SIZE**2, rows / columns
    assert 0.19 < area.min() < 0.25
    assert area.max() > 0.9
    assert 0.74 < ratio.min() < 0.8
    assert 1.25 < ratio.max() < 1.36


def torchvision_windows(count: int) -> np.ndarray:
    """(count, 2) heights and widths as RandomResizedCrop.get_params draws them, loop by loop."""
    random = np.random.default_rng(7)
    found = []
    for _ in range(count):
        for _ in range(10):
            area = random.uniform(0.2, 1.0) * SIZE**2
            ratio = np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3)))
            height, width = round(np.sqrt(area / ratio)), round(np.sqrt(area * ratio))
            if 0 < height <= SIZE and 0 < width <= SIZE:
                break
        else:
            height = width = SIZE
        found.append((height, width))
    return np.array(found)


def test_windows_are_distributed_as_torchvisions():
    arguments = drawn()
    top, left = arguments["shape"][:, 0], arguments["shape"][:, 5]
    height = arguments["anchor"][:, 2] - top
    width = arguments["anchor"][:, 7] - left
    theirs = torchvision_windows(COUNT)
    for ours, other in ((height, theirs[:, 0]), (width, theirs[:, 1])):
        edges = np.arange(0, SIZE + 8, 8)
        found, expected = (np.histogram(v, edges)[0] / COUNT for v in (ours, other))
        assert np.abs(found - expected).max() < 0.012
    spans = ((height == SIZE) | (width == SIZE)).mean()
    assert abs(spans - (theirs == SIZE).any(1).mean()) < 0.005
    assert spans < 0.03
    room = height < SIZE - 20
    assert abs((top / (SIZE - height + 1e-9))[room].mean() - 0.5) < 0.02, "anywhere in it"


def test_every_order_of_the_colors_is_drawn_alike():
    arguments = drawn()
    order = np.stack([arguments[f"kind_{k}"] for k in range(3)], axis=-1)
    for one in permutations(range(3)):
        share = (order == one).all(1).mean()
        assert abs(share - 1 / 6) < 4 * np.sqrt(1 / 6 * 5 / 6 / COUNT)
    factors = np.stack([arguments[f"factor_{k}"] for k in range(3)], axis=-1)
    by_kind = np.take_along_axis(factors, order.argsort(1), axis=1)
    assert abs(np.corrcoef(by_kind.T) - np.eye(3)).max() < 0.03, "drawn apart from one another"


ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


@pytest.mark.parametrize("order", [*permutations(range(3))])
def test_colors_are_within_a_level_of_pillows(faces, order):
    """Also where much is clipped: dark and bright images among them."""
    arguments = drawn(2_000)
    kinds = np.stack([arguments[f"kind_{k}"] for k in range(3)], axis=-1)
    pick = np.flatnonzero((kinds == order).all(1))[:36]
    arguments = {name: values[pick] for name, values in arguments.items()}
    shift = np.array([-60, 0, 60])[np.arange(len(pick)) % 3, None, None, None]
    images = faces[np.arange(len(pick)) % len(faces)].astype(int) + shift
    images = np.clip(images, 0, 255).astype(np.uint8)
    out = adaface(images, arguments, "relit").astype(float)
    for i, image in enumerate(images):
        expected = Image.fromarray(image)
        for k, kind in enumerate(order):
            expected = ENHANCERS[kind](expected).enhance(arguments[f"factor_{k}"][i])
        assert np.abs(out[i] - np.asarray(expected, float)).mean() < 1
