"""DALI comes in when it is used; where it is missing, who needs it says so and names the wheel."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import dali
from pipeline.augment import RECIPES, Draw
from pipeline.augment.geometry import CUBIC, LANCZOS3, LINEAR, NN
from pipeline.dali import DaliMissingError
from pipeline.dali_decode import choose_decode_device
from pipeline.dali_loader import Loader
from pipeline.records.index import open_index
from pipeline.records.recordio import RecordWriter, pack_image

SIZE = 16


@pytest.fixture
def no_dali(monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)  # Python's own way to forbid an import


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    with RecordWriter(folder / "train.rec") as writer:
        for key in range(8):
            file = io.BytesIO()
            Image.new("RGB", (SIZE, SIZE), (key, 0, 0)).save(file, "PNG")
            writer.write(pack_image(file.getvalue(), float(key), key))
    return open_index(folder)


def loader(index, **settings) -> Loader:
    device = torch.device("cpu")
    return Loader(index, global_batch=4, device=device, image_size=SIZE, **settings)


@pytest.mark.parametrize(
    ("cuda", "wheel"), [(None, "cuda120"), ("12.8", "cuda120"), ("13.0", "cuda130")]
)
def test_a_recipe_without_dali_is_refused_with_the_wheel_to_install(
    no_dali, monkeypatch, index, cuda, wheel
):
    """When the loader is made, before anything is allocated for a run."""
    monkeypatch.setattr(torch.version, "cuda", cuda)
    with pytest.raises(DaliMissingError, match=f"pip install nvidia-dali-{wheel};"):
        loader(index, augment=("flip", "light"))
    assert issubclass(DaliMissingError, ValueError)  # one line for users, and no trace


@pytest.mark.parametrize("augment", [(), ("flip",)], ids=["plain", "flip"])
def test_batches_without_dali_are_the_same(no_dali, index, augment):
    batch = next(loader(index, augment=augment).stream(0))
    assert (batch.images[:, 0, 0, 0] == batch.labels).all()


def test_what_recipes_draw_needs_no_dali(no_dali):
    draw = Draw(np.arange(4), seed=0, epoch=0, size=SIZE)
    for recipe in RECIPES.values():
        assert all(len(argument) == 4 for argument in recipe.draw(draw).values())


@pytest.mark.dali
def test_drawn_interpolations_are_the_ones_that_dali_means():
    kinds = {"NN": NN, "LINEAR": LINEAR, "CUBIC": CUBIC, "LANCZOS3": LANCZOS3}
    for name, kind in kinds.items():
        assert int(getattr(dali.types, f"INTERP_{name}")) == kind


def test_a_gpu_with_a_jpeg_engine_decodes_on_the_cpu_where_dali_is_missing(no_dali, monkeypatch):
    card = SimpleNamespace(get_device_capability=lambda device: (9, 0))
    monkeypatch.setattr(torch, "get_device_module", lambda device: card)
    decode, why = choose_decode_device(torch.device("cuda"))
    assert (decode, why) == ("hybrid", "without DALI only the CPU decodes")


@pytest.mark.dali
def test_dali_is_found_where_it_is():
    assert dali.is_installed()
    assert dali.require().fn is dali.fn
    assert not hasattr(dali, "__wrapped__")  # as inspect and others ask of every module
