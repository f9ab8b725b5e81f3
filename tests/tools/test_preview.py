"""preview: originals beside what the run will see."""

import io
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image

from pipeline.dali_loader import Loader
from pipeline.order import GlobalOrder
from pipeline.records.index import open_index
from pipeline.records.recordio import RecordWriter, pack_image
from synthetic import encode_jpeg, render
from tests.commands import call
from tools.preview import main, preview
from training.config import Config, DataConfig, RunConfig

TILE = 112 + 2 * 2  # an image and its border


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    with RecordWriter(folder / "train.rec") as writer:
        for k in range(6):
            writer.write(pack_image(encode_jpeg(render(k, 0)), float(k), k))
    path = folder / "config.py"
    path.write_text(
        "from training.config import Config, DataConfig\n"
        f"config = Config(data=DataConfig(train={str(folder)!r}, global_batch=4,"
        " augment=('flip', 'light', 'quality:0.5')))\n"
    )
    return path


def tile(grid: np.ndarray, row: int, column: int) -> np.ndarray:
    return grid[row * TILE :, column * TILE :][2:114, 2:114]


@pytest.mark.slow
@pytest.mark.dali
def test_the_grid_shows_originals_and_then_what_the_run_sees(config, tmp_path):
    out = tmp_path / "grid.png"
    done = call(main, config, "-o", out, "--images", 4, "--epochs", 2)
    assert done.returncode == 0, done.stderr
    grid = np.asarray(Image.open(out))
    assert grid.shape == (4 * TILE, 3 * TILE, 3)
    device, index = torch.device("cpu"), open_index(config.parent)
    for column, augment in enumerate([(), ("flip", "light", "quality:0.5")]):
        loader = Loader(index, global_batch=4, device=device, augment=augment)
        seen = next(loader.stream(0)).images.permute(0, 2, 3, 1).numpy()
        for row in range(4):
            assert np.array_equal(tile(grid, row, column), seen[row])
    assert not np.array_equal(tile(grid, 0, 1), tile(grid, 0, 2)), "another epoch, other draws"


def test_an_image_that_says_how_to_turn_it_is_shown_as_training_sees_it(tmp_path):
    """The four orientations of cameras' JPEGs: neither decoder may follow them."""
    with RecordWriter(tmp_path / "train.rec") as writer:
        for k, orientation in enumerate((1, 3, 6, 8)):
            exif = Image.Exif()
            exif[0x0112] = orientation
            out = io.BytesIO()
            Image.fromarray(render(k, 0)).save(out, "JPEG", exif=exif.tobytes())
            writer.write(pack_image(out.getvalue(), float(k), k))
    data = DataConfig(train=str(tmp_path), augment=("flip",))
    config = Config(run=RunConfig(device="cpu"), data=data)
    grid = preview(config, images=4, epochs=1)
    index = open_index(tmp_path)
    order = GlobalOrder(len(index), seed=0)(np.arange(4), 0)
    for row, record in enumerate(order.tolist()):
        stored = simplejpeg.decode_jpeg(bytes(index.image(record)))
        assert np.array_equal(tile(grid, row, 0), stored)
        shown = tile(grid, row, 1)
        assert np.array_equal(shown, stored) or np.array_equal(shown, stored[:, ::-1])


def test_overrides_change_what_is_shown(config, tmp_path):
    out = tmp_path / "grid.png"
    done = call(main, config, "data.augment=[]", "-o", str(out), "--images", "2", "--epochs", "1")
    assert done.returncode == 0, done.stderr
    grid = np.asarray(Image.open(out))
    assert np.array_equal(tile(grid, 1, 0), tile(grid, 1, 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["data.augment=[flap]"], "In the configuration: data.augment"),
        (["data.augment=[flip:2]"], "'flip:2': expected flip or flip:P"),
        (["--images", "7"], "--images 7: expected at most 6"),
        (["--epochs", "200"], "expected at most 16384 a side, fewer of them"),
        (
            ["data.image_size=64"],
            "images of data.train are 112×112 pixels. Set data.image_size=112",
        ),
        (["data.train=/nowhere"], "/nowhere"),
    ],
)
def test_what_cannot_be_shown_is_refused_in_a_line(config, tmp_path, options, message):
    out = tmp_path / "grid.png"
    done = call(main, config, "--images", "2", *options, "-o", str(out))  # of two, the last counts
    assert done.returncode == 2
    assert message in done.stderr
    assert not out.exists()


def test_a_picture_of_no_known_kind_is_refused(config, tmp_path):
    done = call(main, config, "-o", str(tmp_path / "grid.nothing"), "--images", "2")
    assert done.returncode == 2
    assert "grid.nothing: expected .png or .jpg" in done.stderr
