"""TensorBoard's projector finds embeddings, names and faces by its own reading of the files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from google.protobuf import text_format
from PIL import Image
from tensorboard.plugins.projector import ProjectorConfig

from evaluation.scoring import Sample
from training.reporting.projector import SIDE, write_projector


def jpeg(level: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (112, 112), (level,) * 3).save(file, format="jpeg")
    return file.getvalue()


def read(folder: Path) -> ProjectorConfig:
    return text_format.Parse((folder / "projector_config.pbtxt").read_text(), ProjectorConfig())


def test_points_names_and_faces_are_in_one_order(tmp_path: Path) -> None:
    rows = np.arange(20, dtype=np.float32).reshape(5, 4) / 7
    sample = Sample(("a", "b\tc", "d", "e\nf", 'g"'), rows)
    pictures = {name: jpeg(40 * i) for i, name in enumerate(sample.names) if name != "d"}
    write_projector(tmp_path, 'lfw"+blur', sample, pictures)
    [shown] = read(tmp_path).embeddings
    assert shown.tensor_name == 'lfw"+blur'
    np.testing.assert_allclose(np.loadtxt(tmp_path / shown.tensor_path), rows, rtol=1e-5)
    names = (tmp_path / shown.metadata_path).read_text().splitlines()
    assert names == ["a", "b c", "d", "e f", 'g"']
    assert list(shown.sprite.single_image_dim) == [SIDE, SIDE]
    sheet = np.asarray(Image.open(tmp_path / shown.sprite.image_path))
    assert sheet.shape == (3 * SIDE, 3 * SIDE, 3), "a square of three by three"
    tiles = sheet.reshape(3, SIDE, 3, SIDE, 3).mean(axis=(1, 3, 4)).ravel()
    np.testing.assert_allclose(tiles[:5], [0, 40, 128, 120, 160], atol=2)


def test_without_pictures_nobody_is_seen(tmp_path: Path) -> None:
    write_projector(tmp_path, "lfw", Sample(("a",), np.ones((1, 4), np.float32)), {})
    [shown] = read(tmp_path).embeddings
    assert not shown.HasField("sprite")
    assert not list(tmp_path.rglob("*.png"))
