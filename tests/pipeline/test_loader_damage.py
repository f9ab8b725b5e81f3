"""Records that are no images, of another size or cut off: what they cost, and what is said."""

import os
from collections.abc import Callable
from contextlib import closing

import numpy as np
import pytest
import torch

from pipeline import dali_loader
from pipeline.dali_decode import decoded, find_faults
from pipeline.dali_loader import Loader
from pipeline.order import permute
from pipeline.records.recordio import MAGIC, RecordError
from tests.pipeline.numbered_images import SIZE, WAYS, encode, loader, picture, take, write_set


@pytest.fixture(
    params=[
        "threads",
        pytest.param("dali", marks=pytest.mark.dali),
        pytest.param("dali decodes", marks=pytest.mark.dali),
    ]
)
def way(request, monkeypatch) -> Callable[..., Loader]:
    """Loaders that leave pixels as they are, on every way there is; the last acts a GPU out."""

    def build(index, **changes) -> Loader:
        augment = () if request.param == "threads" else ("light:1e-12",)
        made = loader(index, augment=augment, **changes)
        if request.param == "dali decodes":
            made.decode = "gpu"
            monkeypatch.setattr(dali_loader, "decoded", lambda encoded, _: decoded(encoded, "cpu"))
        assert made.uses_dali == (request.param != "threads")
        return made

    return build


def test_records_that_are_no_images_cost_one_sample_each_and_are_reported(tmp_path, caplog, way):
    """Two of them are neighbors."""
    index = write_set(tmp_path, {7: b"not an image at all", 6: b"nor this"})
    small = way(index, max_bad_fraction=0.05)
    images, labels = take(small.stream(0), 4)
    order = permute(np.arange(48), num_records=50, seed=5, epoch=0)
    order[(order == 7) | (order == 6)] = 8
    assert labels.tolist() == order.tolist()
    assert torch.equal(images[0], torch.from_numpy(picture(order[0]).transpose(2, 0, 1)))
    offset = index.records["offset"][7]
    assert f"offset {offset} cannot be decoded" in caplog.text
    assert small._bad.faults.keys() == {6, 7}


def test_too_many_bad_records_end_the_run_with_the_place_and_the_remedy(tmp_path, way):
    index = write_set(tmp_path, {7: b"not an image", 8: encode(np.zeros((40, 40, 3), np.uint8))})
    with pytest.raises(RecordError, match=r"offset \d+ (cannot|is 40×40).*raise max_bad_fraction"):
        take(way(index).stream(0), 4)


@pytest.mark.parametrize("odd", [{7}, set(range(50))])
def test_images_of_another_size_are_refused_be_it_one_or_all(tmp_path, odd, way):
    small = encode(np.zeros((40, 40, 3), np.uint8))
    index = write_set(tmp_path, dict.fromkeys(odd, small))
    with pytest.raises(RecordError, match=r"is 40×40, not 32×32 pixels.*bad images of 50"):
        take(way(index).stream(0), 4)


def test_a_set_with_no_good_image_ends_in_an_error_whatever_is_accepted(tmp_path, way):
    index = write_set(tmp_path, dict.fromkeys(range(12), b"nothing"), count=12)
    with pytest.raises(RecordError, match="12 bad images of 12"):
        take(way(index, max_bad_fraction=1.0).stream(0), 1)


@pytest.mark.dali
def test_another_size_is_found_before_a_recipe_changes_it(tmp_path, monkeypatch):
    index = write_set(tmp_path, {7: encode(np.zeros((40, 40, 3), np.uint8))})
    made = loader(index, augment=("adaface",))
    made.decode = "gpu"
    monkeypatch.setattr(dali_loader, "decoded", lambda encoded, _: decoded(encoded, "cpu"))
    with pytest.raises(RecordError, match="is 40×40, not 32×32 pixels"):
        take(made.stream(0), 4)


def test_a_bad_sector_costs_the_records_on_it(tmp_path, monkeypatch, way):
    index = write_set(tmp_path)
    (bad,), _ = index.spans(np.array([7]))
    read = os.pread

    def failing(descriptor, length, offset):
        if offset == bad:
            raise OSError(5, "Input/output error")
        return read(descriptor, length, offset)

    monkeypatch.setattr(os, "pread", failing)
    made = way(index, max_bad_fraction=0.05)
    _, labels = take(made.stream(0), 4)
    assert 7 not in labels.tolist()
    assert "Input/output error" in made._bad.faults[7]


def test_damage_inside_a_split_record_costs_that_record(tmp_path, way):
    """Its second part's frame is hit after the index was made."""
    magic = MAGIC.to_bytes(4, "little")
    split = encode(picture(7))
    split = split.ljust(len(split) + 3 & ~3, b"\0") + magic + b"more"
    index = write_set(tmp_path, {7: split})
    assert index.records["header"][7] == 0
    content = bytearray(index.path.read_bytes())
    at = content.index(magic, int(index.records["offset"][7]) + 4)
    content[at] ^= 1
    seen = index.path.stat()
    index.path.write_bytes(content)
    os.utime(index.path, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    made = way(index, max_bad_fraction=0.05)
    _, labels = take(made.stream(0), 4)
    assert 7 not in labels.tolist()
    assert "the rest is missing" in made._bad.faults[7]


@pytest.mark.dali
def test_what_fails_elsewhere_is_not_blamed_on_images(index, monkeypatch):
    def failing(*_):
        raise RuntimeError("an illegal memory access was encountered")

    made = loader(index, augment=("light",))
    monkeypatch.setattr(made, "_hand_over", failing)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        next(made.stream(0))
    stream = loader(index, augment=("light",)).stream(0)
    next(stream)
    with pytest.raises(RuntimeError, match="the consumer's"):
        stream.throw(RuntimeError("the consumer's"))
    assert not made._bad.faults


@pytest.mark.dali
def test_images_of_another_size_are_named():
    encoded = [encode(picture(0)), encode(np.zeros((20, 30, 3), np.uint8))]
    assert find_faults(encoded, SIZE) == {1: f"is 30×20, not {SIZE}×{SIZE} pixels"}


@WAYS
@pytest.mark.parametrize(
    ("change", "message"), [("cut", "(has shrunk|ends before)"), ("removed", "is gone")]
)
def test_a_file_that_is_cut_or_removed_while_it_is_read_is_named(
    tmp_path, augment, change, message
):
    index = write_set(tmp_path, count=64)
    with closing(loader(index, global_batch=8, augment=augment).stream(0)) as stream:
        next(stream)
        if change == "cut":
            os.truncate(index.path, index.path.stat().st_size // 2)
        else:
            index.path.unlink()
        with pytest.raises(RecordError, match=f"{index.path} {message}"):
            take(stream, 20)


@WAYS
def test_batches_say_which_records_they_hold_replacements_included(tmp_path, augment):
    index = write_set(tmp_path, {7: b"not an image at all"})
    with closing(loader(index, augment=augment, max_bad_fraction=0.05).stream(0)) as stream:
        for _ in range(6):
            batch = next(stream)
            assert batch.records.tolist() == batch.labels.tolist()  # each record is an identity
