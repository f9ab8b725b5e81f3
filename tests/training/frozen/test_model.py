"""Models opened for evaluation: the same embeddings and digest whatever they were read from."""

import dataclasses

import pytest
import torch

from models import create_model, normalize
from pipeline.named_path import PathError
from tests.training import tiny
from tests.training.frozen.test_onnx_network import needs_onnx, write_onnx
from training.frozen.model import open_model
from training.loop import Trainer
from training.saving.weight_file import WeightsError
from training.step.precision import choose_precision

CPU = torch.device("cpu")
DIM, RATE = 16, 0.5

pytestmark = pytest.mark.usefixtures("world")


@pytest.fixture(scope="module")
def trainer(tmp_path_factory, world):
    """An untrained run at a sample rate, saved as a checkpoint and as a file of weights."""
    folder = tmp_path_factory.mktemp("run")
    config = tiny.config(tiny.write_set(folder / "data"), folder / "run")
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, width=1.0),
        head=dataclasses.replace(config.head, sample_rate=RATE),
    )
    precision = choose_precision(CPU, "fp32")
    trainer = Trainer(config, world, precision=precision)
    for buffer in trainer.step.backbone.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    trainer.save()
    trainer.wait_for_checkpoint()
    torch.save(trainer.step.backbone.state_dict(), folder / "model.pth")
    return trainer


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(
        0, 256, (3, 3, tiny.SIZE, tiny.SIZE), dtype=torch.uint8, generator=generator
    )


def load(given, dtype=torch.float32, **more):
    return open_model(given, device=CPU, dtype=dtype, **more)


def weights_file(trainer):
    return trainer.output.parent / "model.pth"


def cosines(found, expected):
    return torch.nn.functional.cosine_similarity(found, expected)


def test_a_checkpoint_and_a_file_of_its_weights_are_one_model(trainer, images):
    run, file = load(trainer.output), load(weights_file(trainer))
    backbone = trainer.step.backbone.eval()
    with torch.no_grad():
        expected = backbone(normalize(images, torch.float32))
    assert cosines(run.embed(images), expected).min() > 0.99999, "BatchNorm is folded"
    assert torch.equal(run.embed(images), file.embed(images))
    assert run.digest == file.digest
    assert (run.embedding_dim, run.network, run.input.size) == (DIM, "iresnet10", tiny.SIZE)
    assert (run.sample_rate, file.sample_rate) == (RATE, None)
    assert "its newest checkpoint" in run.notes[0]


def test_half_precision_comes_close_and_is_another_embedder(trainer, images):
    exact, half = load(trainer.output), load(trainer.output, torch.bfloat16)
    assert half.embed(images).dtype == torch.float32
    assert cosines(half.embed(images), exact.embed(images)).min() > 0.999
    assert not torch.equal(half.embed(images), exact.embed(images))
    digests = {model.embedder(CPU, batch_size=4).digest for model in (exact, half)}
    assert len(digests) == 2, "what is kept of one is not the other's"
    assert exact.digest == half.digest, "the weights are the same"
    assert half.described("x").precision == "bfloat16"


@needs_onnx
def test_an_onnx_file_in_other_words_is_another_embedder(tmp_path):
    write_onnx(tmp_path / "x.onnx", torch.randn(3, 8))
    models = [load(tmp_path / "x.onnx", words=words) for words in ("rgb,0..1", "bgr,0..1")]
    assert models[0].digest == models[1].digest
    assert len({model.embedder(CPU, batch_size=4).digest for model in models}) == 2
    described = models[0].described("mine")
    assert (described.name, described.network, described.embedding_dim) == ("mine", "onnx", 8)
    assert described.input == "RGB in [0, 1], 32 pixels, NCHW"


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(PathError, match=r"none.onnx does not exist: expected an .onnx file"):
        load(tmp_path / "none.onnx")
    with pytest.raises(WeightsError, match="does not exist"):
        load(tmp_path / "none")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mbf", "edgeface_xs", "vit_t"])
def test_every_family_embeds_in_bfloat16_nearly_as_in_float32(name, tmp_path):
    """MobileFaceNet runs its last convolutions outside of autocast: their weights stay float32."""
    torch.manual_seed(0)
    network = create_model(name, embedding_dim=DIM, image_size=112)
    torch.save(network.state_dict(), tmp_path / "model.pth")
    images = torch.randint(0, 256, (2, 3, 112, 112), dtype=torch.uint8)
    exact, rough = (
        load(tmp_path / "model.pth", dtype=dtype).embed(images)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert rough.dtype == torch.float32
    assert cosines(rough, exact).min() > 0.99
