"""Procedural faces: pure functions, distinct people, and neither too easy nor without a signal."""

from __future__ import annotations

import io
from dataclasses import astuple, fields, replace

import numpy as np
import pytest
from PIL import Image

from synthetic import (
    Identity,
    Shot,
    contact_sheet,
    encode_jpeg,
    identity_traits,
    make_pairs,
    render,
)
from synthetic.camera import photograph
from tests.calls import count_calls

# A person who wears everything under short hair, in a shot that hides nothing: all must show.
EVERYTHING = {"beard": 0.5, "mustache": 0.5, "glasses": 0.5, "freckles": 0.5}
EVERYTHING |= {"hair_length": -0.5, "hairline": -0.7}
PLAIN = {"blur": 0.5, "mouth_open": 0.08, "occlusion": 0.9, "light_x": 0.2, "light_y": 0.1}


def middle_of(kind, **chosen):
    values = {f.name: sum(f.metadata["range"]) / 2 for f in fields(kind)}
    return kind(**{**values, **chosen})


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """Mean absolute difference in gray levels."""
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


# ---------------------------------------------------------------- purity


def test_same_arguments_give_the_same_bytes_whatever_was_rendered_between():
    first = render(3, 1)
    render(4, 1)
    identity_traits(99)
    np.testing.assert_array_equal(render(3, 1), first)


def test_identity_image_and_seed_each_change_the_picture():
    base = render(3, 1, seed=0)
    for other in (render(4, 1), render(3, 2), render(1, 3), render(3, 1, seed=1)):
        assert difference(base, other) > 5


def test_seed_and_identity_are_not_interchangeable():
    assert identity_traits(5) == identity_traits(5)
    assert identity_traits(5) != identity_traits(0, seed=5)


# ---------------------------------------------------------------- the picture


def test_default_picture_is_112_rgb_bytes_of_good_contrast():
    for identity in range(10):
        picture = render(identity, 0)
        assert picture.shape == (112, 112, 3)
        assert picture.dtype == np.uint8
        assert picture.flags.c_contiguous
        assert picture.std() > 10
        assert np.mean(picture == 255) < 0.3


@pytest.mark.parametrize("size", [16, 111, 224])
def test_any_size_shows_the_same_scene(size):
    picture = render(2, 7, size=size)
    assert picture.shape == (size, size, 3)
    small, expected = (
        np.asarray(Image.fromarray(p).resize((16, 16), Image.Resampling.BOX))
        for p in (picture, render(2, 7))
    )
    assert difference(small, expected) < 8


def test_numpy_integers_name_the_same_people():
    expected = render(3, 1, size=200)
    np.testing.assert_array_equal(render(np.int64(3), np.uint8(1), size=np.uint8(200)), expected)


@pytest.mark.parametrize("name", [f.name for f in fields(Identity)])
def test_every_trait_shows(name):
    low, high = next(f for f in fields(Identity) if f.name == name).metadata["range"]
    who, shot = middle_of(Identity, **EVERYTHING), middle_of(Shot, **PLAIN)
    pictures = [
        photograph(replace(who, **{name: v}), shot, rng=np.random.default_rng(0), size=112)
        for v in (low, high)
    ]
    assert difference(*pictures) > 0.05


@pytest.mark.parametrize("name", [f.name for f in fields(Shot)])
def test_every_number_of_a_shot_shows(name):
    low, high = next(f for f in fields(Shot) if f.name == name).metadata["range"]
    who, shot = middle_of(Identity), middle_of(Shot, **PLAIN)
    pictures = [
        photograph(who, replace(shot, **{name: v}), rng=np.random.default_rng(0), size=112)
        for v in (low, high)
    ]
    assert difference(*pictures) > 0.1


def test_background_tells_nothing_of_the_identity():
    """The corners of one person's images differ from each other as much as from a stranger's."""
    corners = np.array(
        [[render(i, k)[:10, :10].mean((0, 1)) for k in range(30)] for i in range(8)]
    )  # (8, 30, 3)
    between = corners.mean(1).std(0)
    expected_by_chance = corners.std(1).mean(0) / np.sqrt(30)
    assert (between < 2.5 * expected_by_chance).all()


# ---------------------------------------------------------------- people


def test_traits_stay_on_their_ranges_and_fill_them():
    traits = np.array([astuple(identity_traits(i)) for i in range(2000)])
    low, high = np.array([f.metadata["range"] for f in fields(Identity)]).T
    assert (traits >= low).all()
    assert (traits <= high).all()
    # 2000 uniform draws miss the outer twentieth of a range with probability 0.95**2000.
    assert (traits.min(0) < low + 0.05 * (high - low)).all()
    assert (traits.max(0) > high - 0.05 * (high - low)).all()


def test_traits_are_independent_of_each_other():
    """Independent columns of 2000 have correlations of about 0.022; 0.12 is over five of those."""
    traits = np.array([astuple(identity_traits(i)) for i in range(2000)])
    correlations = np.corrcoef(traits.T) - np.eye(traits.shape[1])
    assert np.abs(correlations).max() < 0.12


@pytest.mark.slow
def test_a_hundred_thousand_people_are_all_different():
    assert len({identity_traits(i) for i in range(100_000)}) == 100_000


def test_strangers_in_the_very_same_shot_look_different():
    """Same pose, light, background and noise: what is left is who they are, and it is plain."""
    shot = middle_of(Shot, **PLAIN)
    faces = [
        photograph(identity_traits(i), shot, rng=np.random.default_rng(0), size=112)
        for i in range(40)
    ]
    gaps = [difference(faces[i], faces[j]) for i in range(40) for j in range(i)]
    assert min(gaps) > 3
    assert np.median(gaps) > 10


# ---------------------------------------------------------------- neither too easy nor empty


@pytest.mark.slow
def test_raw_pixels_hardly_verify_people():
    """Nuisance outweighs identity for a cosine of pixels: at most 0.66 even at its best threshold.

    By chance the best of 400 thresholds reaches about 0.54.
    """
    pairs, genuine = make_pairs(range(1000, 1200), pairs=400, seed=0)
    pixels = np.array([render(*pair, size=56) for pair in pairs], dtype=np.float32)
    flat = pixels.reshape(len(pairs), -1)
    flat -= flat.mean(1, keepdims=True)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    cosine = (flat[0::2] * flat[1::2]).sum(1)  # (400,)
    accuracy = max(np.mean((cosine >= t) == genuine) for t in cosine)
    assert accuracy < 0.66


@pytest.mark.slow
def test_averaged_over_shots_people_are_recognizable():
    """The mean of 20 images of a person is nearest to the mean of 20 others of the same person."""
    people, images = 12, 40
    faces = np.array(
        [[render(i, k, size=56) for k in range(images)] for i in range(people)], dtype=np.float32
    ).reshape(people, images, -1)
    gallery, probes = faces[:, :20].mean(1), faces[:, 20:].mean(1)
    distances = np.linalg.norm(gallery[:, None] - probes[None], axis=2)  # (people, people)
    found = np.mean(distances.argmin(0) == np.arange(people))
    assert found >= 0.75  # chance is 1 in 12


# ---------------------------------------------------------------- JPEG, sheets, pairs


def test_jpeg_decodes_to_nearly_the_same_picture():
    picture = render(1, 2)
    decoded = Image.open(io.BytesIO(encode_jpeg(picture)))
    assert (decoded.format, decoded.mode, decoded.size) == ("JPEG", "RGB", (112, 112))
    assert difference(np.asarray(decoded), picture) < 6


def test_lower_quality_is_fewer_bytes():
    picture = render(1, 2)
    assert len(encode_jpeg(picture, quality=30)) < len(encode_jpeg(picture))


def test_sheet_has_an_identity_a_row_and_its_images_in_order():
    sheet = contact_sheet([5, 9], 3, seed=4, size=64)
    assert sheet.shape == (2 * 68, 3 * 68, 3)
    for row, identity in enumerate((5, 9)):
        for k in range(3):
            tile = sheet[row * 68 : (row + 1) * 68, k * 68 : (k + 1) * 68]
            np.testing.assert_array_equal(tile[2:-2, 2:-2], render(identity, k, seed=4, size=64))
            assert (tile[:2] == 255).all()


def test_each_contiguous_fold_of_pairs_is_half_genuine():
    images, genuine = make_pairs(range(50, 90), pairs=200, seed=1)
    assert len(images) == 400
    assert genuine.shape == (200,)
    assert genuine.dtype == bool
    assert (genuine.reshape(10, 20).sum(1) == 10).all()


def test_pairs_mean_what_they_say():
    images, genuine = make_pairs([7, 8, 30], pairs=400, seed=1)
    same = np.array([a[0] == b[0] for a, b in zip(images[0::2], images[1::2])])
    np.testing.assert_array_equal(same, genuine)
    assert len(set(images)) == len(images)  # no image is used twice
    assert {who for who, _ in images} == {7, 8, 30}
    strangers = {(images[2 * k][0], images[2 * k + 1][0]) for k in np.flatnonzero(~genuine)}
    assert len(strangers) == 6  # every ordered pair of three people


def test_pairs_are_a_function_of_the_seed():
    first, again, other = (make_pairs(range(30), pairs=40, seed=s)[0] for s in (1, 1, 2))
    assert first == again
    assert first != other


# ---------------------------------------------------------------- bad arguments


@pytest.mark.parametrize("bad", [-1, 2**32, 1.5, "3", None])
@pytest.mark.parametrize("name", ["identity", "image", "seed", "size"])
def test_numbers_out_of_range_are_refused_by_name(name, bad):
    arguments = {"identity": 0, "image": 0, "seed": 0, "size": 112, name: bad}
    with pytest.raises(ValueError, match=name):
        render(**arguments)


@pytest.mark.parametrize("size", [0, 15])
def test_sizes_too_small_for_a_face_are_refused(size):
    with pytest.raises(ValueError, match="16 pixels"):
        render(0, 0, size=size)


@pytest.mark.parametrize("pairs", [-20, 0, 1, 15, 30])
def test_pairs_that_cannot_balance_ten_folds_are_refused(pairs):
    with pytest.raises(ValueError, match="multiple of 20"):
        make_pairs(range(10), pairs=pairs, seed=0)


@pytest.mark.parametrize("identities", [[], [3], [3, 3], [3, 4, 3]])
def test_pairs_need_two_identities_each_listed_once(identities):
    with pytest.raises(ValueError, match="two or more, each once"):
        make_pairs(identities, pairs=20, seed=0)


def test_pairs_of_a_negative_identity_are_refused():
    with pytest.raises(ValueError, match="identity is -1"):
        make_pairs([-1, 2], pairs=20, seed=0)


@pytest.mark.parametrize(("identities", "images"), [([], 3), ([1], 0), ([1], -2)])
def test_empty_sheets_are_refused(identities, images):
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet(identities, images)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 3), np.float32),
    ],
)
def test_jpeg_refuses_what_is_not_rgb_bytes(image):
    with pytest.raises(ValueError, match="uint8 RGB"):
        encode_jpeg(image)


@pytest.mark.parametrize("quality", [0, 101])
def test_jpeg_refuses_impossible_qualities(quality):
    with pytest.raises(ValueError, match="1 to 100"):
        encode_jpeg(np.zeros((8, 8, 3), np.uint8), quality=quality)


# ---------------------------------------------------------------- speed


def test_no_pixel_is_drawn_by_itself():
    """A core of 2025 draws a few hundred images a second."""
    render(0, 0)
    assert count_calls(lambda: render(1, 1)) < 5000
