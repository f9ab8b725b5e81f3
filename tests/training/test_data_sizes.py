"""Images of another size than the configured one are refused at the start, with the remedy."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from PIL import Image

from pipeline.records.recordio import RecordWriter, pack_image
from tests.training import tiny
from training.config import ConfigError, override
from training.data import open_training_data
from training.distributed import World

OTHER, SKEW, RIGHT = (48, 48), (48, 40), (tiny.SIZE, tiny.SIZE)


def write_sizes(folder: Path, sizes: list[tuple[int, int]]) -> Path:
    """Images of (width, height) pixels, of two identities; (0, 0) stands for what is none."""
    with RecordWriter(folder / "train.rec") as writer:
        for key, size in enumerate(sizes):
            stored = io.BytesIO(b"none")
            if size[0]:
                Image.new("RGB", size).save(stored, "PNG")
            writer.write(pack_image(stored.getvalue(), float(key % 2), key))
    return folder


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([OTHER] * 8, "48×48 pixels. Set data.image_size=48, or pack them again"),
        ([SKEW] * 8, "48×40 pixels. Pack them again: `python tools/pack_rec.py "),
        ([OTHER, SKEW] * 4, "48×40, 48×48 pixels. Pack them again"),
        ([(40, 40)] * 8, "40×40 pixels. Pack them again"),
    ],
)
def test_a_set_of_another_size_is_refused_with_the_remedy(world: World, tmp_path, sizes, message):
    config = tiny.config(write_sizes(tmp_path, sizes), tmp_path / "run")
    with pytest.raises(ConfigError, match=rf"data\.image_size=32: .*{re.escape(message)}"):
        open_training_data(override(config, ["data.global_batch=4"]), world)


def test_a_set_without_images_is_refused(world: World, tmp_path):
    with RecordWriter(tmp_path / "train.rec") as writer:
        writer.write(pack_image(b"", [1.0, 1.0], 0))
    with pytest.raises(ConfigError, match=r"data\.train=.* found 0 images: expected some"):
        open_training_data(tiny.config(tmp_path, tmp_path / "run"), world)


def test_a_list_that_leaves_out_every_image_is_refused(world: World, tmp_path):
    config = tiny.config(write_sizes(tmp_path, [RIGHT] * 8), tmp_path / "run")
    (tmp_path / "all.txt").write_text("identity 0\nidentity 1\n")
    with pytest.raises(ConfigError, match=r"found 8 images, and data\.leave_out=.* leaves out all"):
        open_training_data(override(config, [f"data.leave_out={tmp_path / 'all.txt'}"]), world)


@pytest.mark.parametrize("sizes", [[OTHER] * 7 + [RIGHT], [OTHER] * 7 + [(0, 0)]])
def test_single_images_are_left_to_who_decodes_them(world: World, tmp_path, sizes):
    config = tiny.config(write_sizes(tmp_path, sizes), tmp_path / "run")
    open_training_data(override(config, ["data.global_batch=4"]), world)
