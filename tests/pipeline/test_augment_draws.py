"""What recipes draw: how often, in which ranges, and as functions of place alone."""

from itertools import pairwise

import numpy as np
import pytest

from pipeline.augment import RECIPES, Augmentation, Draw, Recipe, composition, register_recipe
from pipeline.augment.quality import gaussian_kernels, motion_kernels

COUNT = 20_000
SIZE = 16  # the draws of noise are windows of this side: small, so that they are quick


def draws(recipe: str, *, seed: int = 3, epoch: int = 1, start: int = 0, count: int = COUNT):
    draw = Draw(np.arange(start, start + count), seed=seed, epoch=epoch, size=SIZE)
    return RECIPES[recipe].draw(draw)


def within_binomial_bounds(happened: np.ndarray, probability: float) -> bool:
    """Four standard deviations: false once in 16,000 times if the probability is right."""
    bound = 4 * np.sqrt(probability * (1 - probability) / len(happened))
    return abs(happened.mean() - probability) < bound


@pytest.mark.parametrize(
    ("recipe", "branch", "probability"),
    [
        ("flip", "mirror", 0.5),
        ("arcface", "resized", 0.1),
        ("arcface", "blurred", 0.2),
        ("arcface", "colored", 0.2),
        ("arcface", "grey", 0.1),
        ("adaface", "cropped", 0.2),
        ("adaface", "resized", 0.2),
        ("adaface", "relit", 0.2),
        ("quality", "blurred", 0.3),
        ("quality", "noisy", 0.3),
        ("quality", "compressed", 0.3),
        ("erase", "erased", 0.3),
    ],
)
def test_every_branch_is_taken_as_often_as_it_says(recipe, branch, probability):
    assert within_binomial_bounds(draws(recipe)[branch], probability)


@pytest.mark.parametrize(
    ("recipe", "one", "other", "probability"),
    [
        ("arcface", "blurred", "colored", 0.04),
        ("adaface", "cropped", "resized", 0.04),
        ("quality", "blurred", "noisy", 0.09),
        ("quality", "noisy", "compressed", 0.09),
    ],
)
def test_branches_are_taken_independently(recipe, one, other, probability):
    drawn = draws(recipe)
    assert within_binomial_bounds(drawn[one] & drawn[other], probability)


@pytest.mark.parametrize(
    ("recipe", "argument", "low", "high"),
    [
        ("jitter", "brightness", 0.6, 1.4),
        ("jitter", "saturation", 0.6, 1.4),
        ("jitter", "hue", -18, 18),
        ("arcface", "hue", 0, 20),
        ("arcface", "saturation", 1, 1.2),
        ("arcface", "small", SIZE // 2, SIZE * 8 // 10),
        ("adaface", "down_size", 0.2 * SIZE - 1, SIZE),
        ("adaface", "factor_0", 0.5, 1.5),
        ("adaface", "factor_1", 0.5, 1.5),
        ("adaface", "factor_2", 0.5, 1.5),
        ("quality", "jpeg", 30, 100),
        ("quality", "sigma", 2 / 31, 12 / 31),
        ("erase", "color", 0, 255),
    ],
)
def test_values_fill_their_ranges_and_stay_in_them(recipe, argument, low, high):
    values = draws(recipe)[argument]
    slack = 1e-5 * (high - low)
    assert low - slack <= values.min() <= values.max() <= high + slack
    assert values.min() < low + 0.1 * (high - low), "the low end is reached"
    assert values.max() > high - 0.13 * (high - low), "the high end is reached"


def test_a_third_of_what_is_erased_is_the_lower_face():
    drawn = draws("erase")
    top, bottom = drawn["anchor"][:, 0], drawn["anchor"][:, 0] + drawn["shape"][:, 0]
    assert (drawn["anchor"] >= 0).all()
    assert (drawn["anchor"] + drawn["shape"] <= SIZE).all()
    # At 16 pixels a free rectangle may touch the bottom too, but it then seldom is as wide.
    mask = (bottom == SIZE) & (top >= 0.5 * SIZE) & (drawn["shape"][:, 1] >= 0.6 * SIZE)
    assert 0.1 - 0.01 < mask[drawn["erased"]].mean() * 0.3 < 0.1 + 0.02


def test_blur_kernels_keep_the_brightness():
    kernel = draws("quality")["kernel"]
    assert np.allclose(kernel.sum((1, 2)), 1, atol=1e-6)
    assert (kernel >= 0).all()


def test_gaussian_kernels_have_the_deviation_that_is_asked_for():
    sigma = np.array([0.7, 1.0, 1.5])
    kernels = gaussian_kernels(sigma, 15).astype(np.float64)
    away = np.arange(15) - 7
    spread = np.sqrt((kernels.sum(1) * away**2).sum(-1))
    assert np.allclose(spread, sigma, rtol=0.02)


def test_motion_kernels_lie_along_their_path():
    flat, upright = motion_kernels(np.array([4.0, 4.0]), np.array([0, np.pi / 2]), 7)
    assert np.allclose(flat[3].sum(), 1)
    assert np.allclose(flat.T, upright, atol=1e-6)
    assert np.count_nonzero(flat[3] > 1e-6) == 5, "four pixels of path touch five"


def test_noise_is_standard_normal_and_of_its_own_at_each_place():
    tiles = [tile for tile in draws("quality", count=400)["noise"] if tile.size]
    numbers = np.concatenate([tile.ravel() for tile in tiles]) / 31
    assert abs(numbers.mean()) < 0.02
    assert abs(numbers.std() - 1) < 0.02
    correlated = [abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) for a, b in pairwise(tiles)]
    assert np.mean(correlated) < 0.06, "of 768 independent numbers: 0.029"


@pytest.mark.parametrize("recipe", RECIPES)
def test_draws_depend_on_seed_epoch_and_place_and_on_nothing_else(recipe):
    whole, part = draws(recipe, count=60), draws(recipe, start=25, count=10)
    for name, values in part.items():
        for ours, theirs in zip(values, whole[name][25:35]):
            assert np.array_equal(ours, theirs), f"{name} depends on the batch around it"

    def differ(other: dict) -> bool:
        return any(
            not np.array_equal(a, b) for name in whole for a, b in zip(whole[name], other[name])
        )

    assert differ(draws(recipe, count=60, seed=4))
    assert differ(draws(recipe, count=60, epoch=2))


def test_a_recipe_is_applied_with_the_probability_of_its_entry():
    draw = Draw(np.arange(COUNT), seed=0, epoch=0, size=SIZE)
    applied, mirror = Augmentation(["flip:0.3"]).arrays(draw)
    assert within_binomial_bounds(applied, 0.3)
    assert within_binomial_bounds(mirror[applied], 0.5), "drawn apart from the recipe's own"
    assert len(Augmentation(["flip:1"]).arrays(draw)) == 1


@pytest.mark.parametrize(
    "entry", ["flip:0", "flip:1.1", "flip:-0.5", "flip:", "flip:x", "flip:nan"]
)
def test_what_is_no_probability_is_refused_with_the_key_and_what_is_allowed(entry):
    with pytest.raises(ValueError, match=rf"augment=.*'{entry}': expected flip or flip:P"):
        Augmentation(["light", entry])


def test_a_recipe_is_listed_once_whatever_its_probability():
    with pytest.raises(ValueError, match="each recipe once"):
        Augmentation(["flip", "flip:0.5"])


def draw_shade(draw: Draw) -> dict:
    return {"shade": draw.factors("shade.shade", 0.2)}


def apply_shade(images, shade):
    return images


def test_a_registered_recipe_is_one_of_the_entries(monkeypatch):
    monkeypatch.setattr(composition, "OWN_RECIPES", {})
    monkeypatch.setitem(RECIPES, "shade", Recipe(draw_shade, apply_shade))
    for _ in range(2):  # as a cell that runs twice
        register_recipe("shade", Recipe(draw_shade, apply_shade))
    (shade,) = Augmentation(["shade"]).arrays(Draw(np.arange(5), seed=0, epoch=0, size=112))
    assert shade.shape == (5,)


@pytest.mark.parametrize(
    ("name", "recipe", "complaint"),
    [
        ("flip", Recipe(draw_shade, apply_shade), "there is a recipe 'flip' already"),
        ("a:b", Recipe(draw_shade, apply_shade), "a name without a colon"),
        ("", Recipe(draw_shade, apply_shade), "a name without a colon"),
        ("mine", draw_shade, r"expected Recipe\(draw, apply\) of two functions"),
        ("mine", Recipe(draw_shade, None), r"expected Recipe\(draw, apply\) of two functions"),
        ("mine", Recipe(lambda draw: {"shade": draw("a")}, apply_shade), r"astype\('float32'\)"),
        ("mine", Recipe(lambda draw: {"shade": np.ones(1, bool)}, apply_shade), "three images"),
        ("mine", Recipe(lambda draw: {"shade": 0.5}, apply_shade), "three images"),
        ("mine", Recipe(lambda draw: draw("a"), apply_shade), "draws a ndarray, expected a dict"),
        ("mine", Recipe(lambda draw: {}, apply_shade), "does not take that: missing a required"),
    ],
)
def test_what_is_no_recipe_is_not_registered(name, recipe, complaint):
    before = dict(RECIPES)
    with pytest.raises(ValueError, match=complaint):
        register_recipe(name, recipe)
    assert before == RECIPES
