"""Embeddings of a set: kept, taken again, gone on with after a kill; damage named."""

from __future__ import annotations

import fcntl
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from evaluation.features import Embedder, Features, NonFiniteEmbeddingsError, extract
from evaluation.images import Images, ImagesError, encoded_images, image_files, require_size

SIZE = 16
COUNT = 11


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="png")
    return file.getvalue()


def some_pngs(count: int = COUNT) -> list[bytes]:
    random = np.random.default_rng(0)
    return [png(random.integers(1, 256, (SIZE, SIZE, 3), dtype=np.uint8)) for _ in range(count)]


def some_images(encoded: list[bytes] | None = None) -> Images:
    encoded = some_pngs() if encoded is None else encoded
    return encoded_images(encoded, names=[f"image {i}" for i in range(len(encoded))], size=SIZE)


class Counting:
    """An embedder that counts images and can be killed after some batches."""

    def __init__(self, *, dies_after: int | None = None) -> None:
        self.images, self._left = 0, dies_after

    def __call__(self, pixels: Tensor) -> Tensor:
        if self._left is not None:
            if self._left == 0:
                raise KeyboardInterrupt
            self._left -= 1
        self.images += len(pixels)
        return pixels[:, :, :, :4].float().mean(2).flatten(1)  # (b, 12), its mirror image's differ


def embedder(embed: Counting, **options: object) -> Embedder:
    values = {"digest": "d", "image_size": SIZE, "batch_size": 4, "device": torch.device("cpu")}
    return Embedder(embed, **(values | options))


def found(features: Features | None) -> np.ndarray:
    assert features is not None
    return np.concatenate([features.embeddings, features.norms[:, None]], axis=1)


def test_what_is_kept_is_taken_again_with_the_same_bits(tmp_path: Path) -> None:
    first, second = Counting(), Counting()
    expected = found(extract(embedder(first), some_images()))
    kept = [found(extract(embedder(e), some_images(), keep=tmp_path)) for e in (first, second)]
    assert all(np.array_equal(expected, rows) for rows in kept)
    assert (first.images, second.images) == (4 * COUNT, 0)
    norms = np.linalg.norm(
        found(extract(embedder(Counting()), some_images(), flip=False))[:, :-1], axis=1
    )
    np.testing.assert_allclose(expected[:, -1], norms, rtol=1e-6)


@pytest.mark.parametrize("cut", [0, 1, 63, 64, 80, 128, 129, 128 + 13 * 4 * 4, 128 + 13 * 4 * 9])
def test_after_a_kill_at_any_byte_it_goes_on_with_whole_batches(tmp_path: Path, cut: int) -> None:
    expected = found(extract(embedder(Counting()), some_images(), keep=tmp_path))
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:cut])
    again = Counting()
    assert np.array_equal(found(extract(embedder(again), some_images(), keep=tmp_path)), expected)
    kept_batches = max(0, cut - 128) // (13 * 4 * 4)
    assert again.images == 2 * (COUNT - 4 * kept_batches)
    assert file.read_bytes() == whole


FORGED = {  # what looks like a kept file of the same size, and is another
    "columns": lambda content: b"12".rjust(64) + content[64:],
    "more columns than it holds": lambda content: b"99".rjust(64) + content[64:],
    "no number": lambda content: b"x".rjust(64) + content[64:],
    "a huge number": lambda content: b"9" * 64 + content[64:],
    "a bit of a row": lambda content: content[:130] + bytes([content[130] ^ 1]) + content[131:],
    "a digest": lambda content: content[:64] + bytes([content[64] ^ 1]) + content[65:],
    "batches": lambda content: content[:128] + content[336:544] + content[128:336] + content[544:],
}


@pytest.mark.parametrize("change", list(FORGED))
def test_a_forged_or_damaged_file_is_not_believed(tmp_path: Path, change: str) -> None:
    expected = found(extract(embedder(Counting()), some_images(), keep=tmp_path))
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(FORGED[change](whole))
    again = Counting()
    assert np.array_equal(found(extract(embedder(again), some_images(), keep=tmp_path)), expected)
    assert again.images == 2 * COUNT
    assert file.read_bytes() == whole


def test_damage_in_the_middle_is_reported_and_what_is_before_it_is_kept(
    tmp_path: Path, caplog
) -> None:
    expected = found(extract(embedder(Counting()), some_images(), keep=tmp_path))
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:340] + bytes([whole[340] ^ 1]) + whole[341:])
    with pytest.raises(KeyboardInterrupt):
        extract(embedder(Counting(dies_after=0)), some_images(), keep=tmp_path)
    assert "kept rows are damaged from 4 of 11 on: they are made again" in caplog.text
    caplog.clear()
    again = Counting()
    assert np.array_equal(found(extract(embedder(again), some_images(), keep=tmp_path)), expected)
    assert again.images == 2 * (COUNT - 4)
    assert not caplog.records, "what is unfinished is no damage"
    assert file.read_bytes() == whole


def test_embeddings_of_other_weights_under_this_name_are_not_taken(tmp_path: Path) -> None:
    def darker(pixels: Tensor) -> Tensor:
        return Counting()(pixels) / 2

    expected = found(extract(embedder(Counting()), some_images(), keep=tmp_path / "own"))
    theirs = replace(embedder(Counting(), digest="other"), embed=darker)
    extract(theirs, some_images(), keep=tmp_path / "other")
    (own,), (other,) = ((tmp_path / name).iterdir() for name in ("own", "other"))
    own.write_bytes(other.read_bytes())
    rows = found(extract(embedder(Counting()), some_images(), keep=tmp_path / "own"))
    assert np.array_equal(rows, expected)


def test_an_interrupted_evaluation_keeps_its_batches(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        extract(embedder(Counting(dies_after=4)), some_images(), keep=tmp_path)
    again = Counting()
    extract(embedder(again), some_images(), keep=tmp_path)
    assert again.images == 2 * (COUNT - 8)


def test_other_weights_images_flips_and_batches_are_kept_apart(tmp_path: Path) -> None:
    others = [
        (embedder(Counting()), some_images(), True),
        (embedder(Counting(), digest="other"), some_images(), True),
        (embedder(Counting()), some_images(some_pngs(12)), True),
        (embedder(Counting()), some_images(), False),
        (embedder(Counting(), batch_size=3), some_images(), True),
    ]
    for used, images, flip in others:
        features = extract(used, images, flip=flip, keep=tmp_path)
        assert features is not None
        assert features.flip == flip
        assert used.embed.images > 0  # type: ignore[attr-defined]
    assert len(list(tmp_path.iterdir())) == len(others)


def test_what_a_power_cut_left_as_zeros_is_embedded_again(tmp_path: Path) -> None:
    encoded = some_pngs()
    encoded[1] = b"no image"  # whose row is zeros, as it should be
    images = some_images(encoded)
    expected = found(extract(embedder(Counting()), images, keep=tmp_path, skip_damaged=True))
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    file.write_bytes(content[:-100] + bytes(100))
    rows = found(extract(embedder(Counting()), images, keep=tmp_path, skip_damaged=True))
    assert np.array_equal(rows, expected)
    assert file.read_bytes() == content
    again = embedder(Counting())
    extract(again, images, keep=tmp_path, skip_damaged=True)
    assert again.embed.images == 0  # type: ignore[attr-defined]


def test_a_file_that_another_evaluation_is_writing_is_left_alone(tmp_path: Path) -> None:
    expected = found(extract(embedder(Counting()), some_images(), keep=tmp_path))
    (file,) = tmp_path.iterdir()
    file.write_bytes(b"")
    with file.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        rows = found(extract(embedder(Counting()), some_images(), keep=tmp_path))
    assert np.array_equal(rows, expected)
    assert file.read_bytes() == b""


@pytest.mark.parametrize("times", [1, 2])
def test_damaged_images_are_named_or_counted(tmp_path: Path, times: int) -> None:
    encoded = some_pngs()
    encoded[2], encoded[9] = b"no image", encoded[9][:60]
    images = some_images(encoded)
    for _ in range(times):  # at the second time they are known from what was kept
        with pytest.raises(ImagesError, match=r"2 of 11 images are bad: image 2 cannot be decoded"):
            extract(embedder(Counting()), images, keep=tmp_path)
    features = extract(embedder(Counting()), images, keep=tmp_path, skip_damaged=True)
    assert features is not None
    assert sorted(features.damaged) == [2, 9]
    assert not features.embeddings[[2, 9]].any()
    assert features.embeddings[[0, 1, 3, 10]].any(axis=1).all()


def test_what_is_not_finite_is_refused() -> None:
    def diverged(pixels: Tensor) -> Tensor:
        return torch.full((len(pixels), 3), float("nan"))

    with pytest.raises(NonFiniteEmbeddingsError, match="11 of 11 embeddings are not finite"):
        extract(replace(embedder(Counting()), embed=diverged), some_images())


# --- Images -------------------------------------------------------------------------------------


def test_images_in_files_are_those_in_memory(tmp_path: Path) -> None:
    encoded = some_pngs(3)
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, image in zip(paths, encoded):
        path.write_bytes(image)
    images = image_files(paths, names=["a", "b", "c"], size=SIZE)
    expected, _ = some_images(encoded).load(range(3))
    assert np.array_equal(images.load(range(3))[0], expected)
    assert images.read(1) == encoded[1]
    before = images.fingerprint
    paths[2].write_bytes(encoded[0] + b" ")
    assert image_files(paths, names=["a", "b", "c"], size=SIZE).fingerprint != before
    paths[1].unlink()
    assert "does not exist" in images.load(range(1, 2))[1][0]
    with pytest.raises(ImagesError, match=r"1\.png.*does not exist"):
        image_files(paths, names=["a", "b", "c"], size=SIZE)


def test_a_rank_that_has_a_share_of_the_images_embeds_that() -> None:
    encoded = some_pngs(4)
    names = [f"image {i}" for i in range(4)]
    share = encoded_images({1: encoded[1], 3: encoded[3]}, names=names, size=SIZE)
    assert len(share) == 4
    expected, _ = some_images(encoded).load(range(3, 4))
    assert np.array_equal(share.load(range(3, 4))[0], expected)


def test_another_size_is_named_by_its_header() -> None:
    other = png(np.zeros((SIZE, 2 * SIZE, 3), np.uint8))
    with pytest.raises(ImagesError, match=r"lfw\.bin: image image 1 has 32×16 pixels, not 16×16"):
        require_size(some_images([*some_pngs(1), other]), range(2), found_in="lfw.bin")


def test_the_picture_of_an_image_is_what_the_network_sees() -> None:
    gray = png(np.full((SIZE, SIZE, 3), 90, np.uint8))
    images = some_images([gray, b"damaged"])
    picture = images.picture(0)
    assert picture is not None
    assert np.abs(np.asarray(Image.open(io.BytesIO(picture))).astype(int) - 90).max() <= 1
    assert images.picture(1) is None
