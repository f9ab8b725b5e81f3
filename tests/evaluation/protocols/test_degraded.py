"""Degraded sets: each kind does what its name says, alike in any batch, and names its bounds."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from evaluation.images import Images, ImagesError, encoded_images
from evaluation.protocols.degraded import DEGRADATIONS, degraded, description

SIZE = 112


def some_images(count: int = 4) -> Images:
    random = np.random.default_rng(0)
    encoded = []
    for _ in range(count):
        coarse = random.integers(0, 256, (28, 28, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.NEAREST)
        file = io.BytesIO()
        image.save(file, format="png")
        encoded.append(file.getvalue())
    return encoded_images(encoded, names=[f"image {i}" for i in range(count)], size=SIZE)


@pytest.mark.parametrize("kind", DEGRADATIONS)
def test_an_image_is_degraded_alike_in_any_batch(kind: str) -> None:
    images = degraded(some_images(), kind)
    together, _ = images.load(range(4))
    for place in range(4):
        alone, faults = images.load(range(place, place + 1))
        assert not faults
        assert np.array_equal(alone[0], together[place])
    original, _ = some_images().load(range(4))
    assert (together != original).any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize("kind", DEGRADATIONS)
def test_a_stronger_degradation_is_farther_from_the_original(kind: str) -> None:
    original, _ = some_images(1).load(range(1))
    weak_and_strong = {
        "blur": (0.5, 4),
        "lowres": (64, 8),
        "jpeg": (90, 5),
        "noise": (4, 60),
        "mask": (0.8, 0.4),
    }[kind]
    errors = []
    for strength in weak_and_strong:
        pixels, _ = degraded(some_images(1), kind, strength).load(range(1))
        errors.append(float(np.abs(pixels.astype(float) - original).mean()))
    assert 0 < errors[0] < errors[1]


def test_noise_has_the_deviation_asked_for_and_another_seed_other_noise() -> None:
    flat = io.BytesIO()
    Image.new("RGB", (SIZE, SIZE), (128, 128, 128)).save(flat, format="png")
    images = encoded_images([flat.getvalue()], names=["gray"], size=SIZE)
    found = [degraded(images, "noise", 20, seed=seed).load(range(1))[0] for seed in (0, 1)]
    assert abs(found[0].astype(float).std() - 20) < 0.5
    assert (found[0] != found[1]).mean() > 0.9


def test_a_mask_leaves_the_upper_half_of_the_face_alone() -> None:
    original, _ = some_images(1).load(range(1))
    masked, _ = degraded(some_images(1), "mask").load(range(1))
    assert np.array_equal(masked[:, : int(0.55 * SIZE)], original[:, : int(0.55 * SIZE)])
    changed = (masked != original).any(axis=3)[0, int(0.7 * SIZE) : int(0.85 * SIZE)]
    assert changed[:, SIZE // 3 : 2 * SIZE // 3].mean() > 0.95


def test_a_kept_embedding_of_another_degradation_is_not_taken_for_this_one() -> None:
    images = some_images()
    prints = {images.fingerprint}
    for kind in DEGRADATIONS:
        prints.add(degraded(images, kind).fingerprint)
    prints.add(degraded(images, "blur", 3).fingerprint)
    prints.add(degraded(images, "blur", seed=1).fingerprint)
    assert len(prints) == len(DEGRADATIONS) + 3


def test_bounds_and_kinds_are_named() -> None:
    with pytest.raises(ImagesError, match=r"\+fog is no degradation.*blur, lowres, jpeg"):
        degraded(some_images(), "fog")
    with pytest.raises(ImagesError, match=r"\+jpeg=0, expected 1 to 95 \(JPEG quality\)"):
        degraded(some_images(), "jpeg", 0)
    assert "blur 2 (pixels" in description("blur")
