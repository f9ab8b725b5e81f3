"""CR-FIQA's quality: what training learned comes out of predictions and exported graphs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from heads import Classifiability
from tests.commands import call
from tests.training import tiny
from tests.training.frozen.test_onnx_network import needs_onnx
from tests.training.steps import advance, build
from tools.export_onnx import main as export_main
from tools.predict import main as predict_main
from training.config import override
from training.distributed import join_world, leave_world
from training.frozen.model import open_model
from training.frozen.onnx_file import metadata_in
from training.saving.reading import open_weights
from training.shipping.export import BOUNDS, CHECKED
from training.weights.learned_quality import QualityError, learned_quality

# What the margin and another term learn stands before it, what a third learns behind it.
SETTINGS = (
    "head.loss=uniface",
    "head.extra_terms={sample_to_sample: {}, classifiability: {weight: 30}}",
)
D = 16


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> tuple[Path, Tensor]:
    """A run, and what its term has learned."""
    output = tmp_path_factory.mktemp("runs") / "run"
    world = join_world("cpu")
    trainer = build(override(tiny.config(data, output), [*SETTINGS]), world)
    advance(trainer, world, 8)
    trainer.save()
    trainer.close()
    learned = trainer.step.head.learned
    leave_world()
    assert learned.shape == (1 + 1 + D + 1,)
    return output, learned[2:].clone()


def pixels(count: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, tiny.SIZE, tiny.SIZE, 3), np.uint8)


def expected(run: Path, learned: Tensor, images: np.ndarray, *, flip: bool) -> np.ndarray:
    """By the term itself: of an image, or the mean of both."""
    embed = open_model(run, device=torch.device("cpu"), dtype=torch.float32).embed
    batch = torch.from_numpy(images).permute(0, 3, 1, 2)
    quality = Classifiability().quality(embed(batch), learned)
    if flip:
        quality = (quality + Classifiability().quality(embed(batch.flip(3)), learned)) / 2
    return quality.numpy()


def test_it_is_found_among_all_that_the_head_learns(trained):
    run, learned = trained
    found = learned_quality(open_weights(run), called=str(run))
    rows = torch.randn(5, D)
    assert learned[:-1].norm() > 0
    assert torch.allclose(found.of(rows, summed=False), Classifiability().quality(rows, learned))


@pytest.mark.parametrize("flip", [True, False])
def test_a_prediction_has_it_beside_the_embeddings(flip, trained, tmp_path):
    run, learned = trained
    images = pixels(5)
    (tmp_path / "faces").mkdir()
    for place, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"faces/{place}.png")
    (tmp_path / "faces/5.png").write_bytes((tmp_path / "faces/4.png").read_bytes()[:200])
    out = tmp_path / "out"
    options = ("--device", "cpu", "--precision", "fp32", *([] if flip else ["--no-flip"]))
    ended = call(predict_main, run, tmp_path / "faces", "-o", out, "--learned-quality", *options)
    assert ended.returncode == 0, ended.stderr
    found = np.load(out / "quality.npy")
    assert found.dtype == np.float32
    assert found[:5] == pytest.approx(expected(run, learned, images, flip=flip), abs=1e-5)
    assert np.isnan(found[5]), "a damaged image has none"


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize(
    "form", [(), ("--input", "uint8-rgb-nhwc", "--flip-sum", "--normalize")], ids=["bare", "all"]
)
def test_onnxruntime_gives_it_as_a_second_output(form, dtype, trained, data, tmp_path, monkeypatch):
    import onnxruntime

    run, learned = trained
    path = tmp_path / "x.onnx"
    monkeypatch.setitem(BOUNDS, "int8", 0.6)  # its weights have hardly learned
    arguments = [*form, "--dtype", dtype, "--calibrate", data]
    ended = call(export_main, run, "-o", path, "--learned-quality", *arguments)
    assert ended.returncode == 0, ended.stderr
    assert "a quality differs from torch's by" in ended.stdout
    differs = json.loads(metadata_in(path.read_bytes())[CHECKED])["quality_differs"]
    assert 0 < differs <= BOUNDS[dtype]

    images = pixels(3)
    given = images
    if not form:
        given = ((images.astype(np.float32) - 127.5) / 127.5).transpose(0, 3, 1, 2)
    embeddings, quality = onnxruntime.InferenceSession(path).run(
        ["embeddings", "quality"], {"images": given}
    )
    assert (embeddings.shape, quality.shape) == ((3, D), (3, 1))
    if dtype != "int8":
        wanted = expected(run, learned, images, flip=bool(form))
        assert quality[:, 0] == pytest.approx(wanted, abs=2e-2 if dtype == "fp16" else 1e-4)
        again = open_weights(path).network().eval().requires_grad_(False)
        assert len(list(again.parameters())) == len(list(open_weights(run).network().parameters()))


def test_a_model_without_it_says_what_to_train_with(trained, data, tmp_path):
    run, _ = trained
    world = join_world("cpu")
    plain = build(tiny.config(data, tmp_path / "plain"), world)
    plain.save()
    plain.close()
    leave_world()
    wanted = "Train with 'head.extra_terms={classifiability: {}}'"
    for main, given in ((predict_main, [data]), (export_main, [])):
        ended = call(
            main, tmp_path / "plain", *given, "-o", tmp_path / "x.onnx", "--learned-quality"
        )
        assert ended.returncode != 0
        assert wanted in ended.stderr
    torch.save(open_weights(run).network().state_dict(), tmp_path / "x.pth")
    with pytest.raises(QualityError, match="name the run, or RUN@best"):
        learned_quality(open_weights(tmp_path / "x.pth"), called="x.pth")
