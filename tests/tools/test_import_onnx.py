"""tools/import_onnx.py: what it writes is trained on from, and nothing half written stays."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from models import normalize
from tests.commands import call
from tests.models.small import SIZE, small, trained
from tests.training.weights.onnx_graphs import source, write
from tools.export_onnx import main as export_main
from tools.import_onnx import main
from tools.make_synthetic import make_synthetic
from training.frozen.card import TrainingData, read_card, space_of
from training.frozen.model import digest_of_weights
from training.saving.reading import open_weights
from training.shipping.known import data_of


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("onnx") / "theirs.onnx", source())


def assert_embeds_alike(given: Path) -> None:
    images = normalize(torch.randint(0, 256, (2, 3, SIZE, SIZE), dtype=torch.uint8), torch.float32)
    with torch.no_grad():
        found, expected = open_weights(given).network().eval()(images), source()(images)
    assert ((found - expected).norm(dim=1) / expected.norm(dim=1)).max() <= 2e-5


def test_a_file_of_weights_with_a_card(model, tmp_path):
    output = tmp_path / "new" / "ours.safetensors"
    ended = call(main, model, "-o", output, "--license", "cc-by-nc-4.0", "--origin", "the moon")
    assert ended.returncode == 0, ended.stderr
    assert "differs from onnxruntime's by" in ended.stdout
    assert f"run.init_from={output}" in ended.stdout
    assert_embeds_alike(output)
    card = read_card(output)
    assert card.network == "iresnet10"
    assert card.data == [TrainingData("unknown", "the moon", "cc-by-nc-4.0")]
    assert [file.name for file in output.parent.iterdir()] == ["ours.safetensors"]


@pytest.mark.parametrize(
    ("options", "known"),
    [([], []), (["--license", "mit"], [TrainingData("unknown", "unknown", "mit")])],
)
def test_a_run_with_one_checkpoint(options, known, model, tmp_path):
    run = tmp_path / "r50_v1.5"
    ended = call(main, model, "-o", run, *options)
    assert ended.returncode == 0, ended.stderr
    assert_embeds_alike(run)
    saved = open_weights(run)
    assert saved.architecture == small("iresnet10")
    assert data_of(saved) == known


@pytest.mark.slow
@pytest.mark.parametrize("images", [1, 20])
def test_statistics_of_images(images, model, tmp_path):
    make_synthetic(tmp_path, identities=4, images=8, pairs=20, seed=0, size=SIZE)
    output = tmp_path / "ours.safetensors"
    options = ["--statistics", tmp_path / "train.rec", "--images", images]
    ended = call(main, model, "-o", output, *options)
    assert ended.returncode == 0, ended.stderr
    assert f"statistics    of {images} images for 13 BatchNorms" in ended.stdout
    assert_embeds_alike(output)
    assert (open_weights(output).network().bn1.running_mean != 0).any()


@pytest.mark.slow
def test_a_card_goes_on_and_its_space(tmp_path):
    torch.save(trained("mbf").state_dict(), tmp_path / "mbf.pt")
    assert call(export_main, tmp_path / "mbf.pt", "-o", tmp_path / "mbf.onnx").returncode == 0
    assert call(main, tmp_path / "mbf.onnx", "-o", tmp_path / "b.safetensors").returncode == 0
    theirs, ours = read_card(tmp_path / "mbf.onnx"), read_card(tmp_path / "b.safetensors")
    digest = digest_of_weights(open_weights(tmp_path / "b.safetensors").network())
    assert digest != theirs.space
    assert space_of(tmp_path / "b.safetensors", digest) == theirs.space
    assert ours.input == theirs.input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.onnx", "-o", "x"], "no.onnx does not exist"),
        (["theirs.onnx", "-o", "x.pt"], "expected OUT.safetensors, or a folder for a run"),
        (["theirs.onnx", "-o", "full"], "is not empty"),
        (["theirs.onnx", "-o", "x", "--onnx-input", "pink"], "'pink' in 'pink'"),
        (["cut.onnx", "-o", "x"], "cut.onnx cannot be read as ONNX"),
        (["empty.onnx", "-o", "x.safetensors"], "empty.onnx holds no graph"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(arguments, message, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(model, "theirs.onnx")
    Path("cut.onnx").write_bytes(model.read_bytes()[:-1000])
    Path("empty.onnx").touch()
    Path("full").mkdir()
    Path("full/x").touch()
    before = sorted(tmp_path.rglob("*"))
    ended = call(main, *arguments)
    assert ended.returncode == 2
    assert message in ended.stderr
    assert sorted(tmp_path.rglob("*")) == before
