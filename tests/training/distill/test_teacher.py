"""Teachers: the same embeddings and fingerprint whatever they are read from, and never changed."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from models import create_model, normalize
from pipeline.named_path import PathError
from tests.training import tiny
from training.config import DistillConfig, override
from training.distill.teacher import (
    TeacherError,
    fingerprint_teacher,
    load_teacher,
    name_teacher,
)
from training.loop import Trainer
from training.saving.weight_file import WeightsError
from training.step.precision import choose_precision

CPU = torch.device("cpu")
FP32 = choose_precision(CPU, "fp32")
NAME, DIM = "iresnet10", 16


pytestmark = pytest.mark.usefixtures("world")


@pytest.fixture(scope="module")
def trainer(tmp_path_factory, world):
    """An untrained run that was saved, its model as wide as arcface_torch's."""
    folder = tmp_path_factory.mktemp("run")
    config = tiny.config(tiny.write_set(folder / "data"), folder / "run")
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, width=1.0))
    trainer = Trainer(config, world, precision=FP32)
    for buffer in trainer.step.backbone.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    trainer.save()
    trainer.wait_for_checkpoint()
    return trainer


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    shape = (3, 3, tiny.SIZE, tiny.SIZE)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def taught_by(config, path, model=""):
    return dataclasses.replace(config, distill=DistillConfig(teacher=str(path), model=model))


def load(config):
    return load_teacher(config, device=CPU, precision=FP32)


def expected(trainer, images):
    backbone = trainer.step.backbone.eval()
    with torch.no_grad():
        return backbone(normalize(images, torch.float32))


def test_a_checkpoint_embeds_as_the_network_it_was_saved_from(trainer, images):
    teacher = load(taught_by(trainer.config, trainer.last_checkpoint))
    assert teacher.embedding_dim == DIM
    assert torch.equal(teacher.embed(images), expected(trainer, images))


def test_a_state_dict_of_the_same_weights_is_the_same_teacher(trainer, images, tmp_path):
    path = tmp_path / "backbone.pth"
    torch.save(trainer.step.backbone.state_dict(), path)
    from_file = taught_by(trainer.config, path, NAME)
    from_checkpoint = taught_by(trainer.config, trainer.last_checkpoint)
    teacher = load(from_file)
    assert torch.equal(teacher.embed(images), expected(trainer, images))
    assert teacher.fingerprint == fingerprint_teacher(from_checkpoint)
    assert teacher.fingerprint == fingerprint_teacher(from_file)


def test_one_changed_number_makes_another_fingerprint(trainer, tmp_path):
    weights = dict(trainer.step.backbone.state_dict())
    weights["features.running_mean"] = weights["features.running_mean"].clone()
    weights["features.running_mean"][3] += 1e-3
    torch.save(weights, tmp_path / "model.pt")
    changed = fingerprint_teacher(taught_by(trainer.config, tmp_path / "model.pt", NAME))
    assert changed != fingerprint_teacher(taught_by(trainer.config, trainer.last_checkpoint))


def test_embedding_leaves_no_gradient_and_no_trace(trainer, images):
    """BatchNorm's statistics stand still: the same images again are the same embeddings."""
    teacher = load(taught_by(trainer.config, trainer.last_checkpoint))
    first = teacher.embed(images)
    assert not first.requires_grad
    teacher.embed(255 - images)
    assert torch.equal(teacher.embed(images), first)


def test_it_runs_in_the_compute_dtype_and_returns_float32(trainer, images):
    config = taught_by(trainer.config, trainer.last_checkpoint)
    half = load_teacher(config, device=CPU, precision=choose_precision(CPU, "bf16"))
    found, exact = half.embed(images), expected(trainer, images)
    assert found.dtype == torch.float32
    assert not torch.equal(found, exact)
    assert torch.nn.functional.cosine_similarity(found, exact).min() > 0.99


def test_what_is_not_there_or_no_checkpoint_is_refused(trainer, tmp_path):
    with pytest.raises(PathError, match=r"does not exist: expected a checkpoint's folder"):
        load(taught_by(trainer.config, tmp_path / "none"))
    with pytest.raises(WeightsError, match="is there, but holds no checkpoint"):
        load(taught_by(trainer.config, tmp_path))


def test_a_teacher_of_another_image_size_is_refused(trainer):
    config = taught_by(trainer.config, trainer.last_checkpoint)
    larger = dataclasses.replace(config, data=dataclasses.replace(config.data, image_size=48))
    with pytest.raises(TeacherError, match=r"images of 32 pixels .* given RGB .* 48 pixels"):
        load(larger)


@pytest.mark.slow
def test_a_run_its_best_one_and_files_of_any_kind_are_the_same_teacher(trainer, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    state = dict(trainer.step.backbone.state_dict())
    torch.save({"epoch": 3, "model": state}, tmp_path / "nested.pt")
    plain = {name: tensor.contiguous() for name, tensor in state.items()}
    safetensors.save_file(plain, tmp_path / "model.safetensors")
    message = name_teacher(taught_by(trainer.config, trainer.output))
    assert message == f"{trainer.output}: {trainer.last_checkpoint.name}, its newest checkpoint"
    assert name_teacher(taught_by(trainer.config, tmp_path / "nested.pt")).endswith("/nested.pt")
    run, step = trainer.output, int(trainer.last_checkpoint.name.removeprefix("step_"))
    there = [run, f"{run}@{step}", tmp_path / "nested.pt", tmp_path / "model.safetensors"]
    found = {fingerprint_teacher(taught_by(trainer.config, path)) for path in there}
    assert found == {fingerprint_teacher(taught_by(trainer.config, trainer.last_checkpoint))}


def test_state_dicts_of_other_networks_and_other_things_are_refused(trainer, tmp_path):
    path = tmp_path / "backbone.pth"
    config = taught_by(trainer.config, path, NAME)
    deeper = create_model("iresnet18", embedding_dim=DIM, image_size=tiny.SIZE).state_dict()
    for content, error, complaint in [
        (deeper, TeacherError, r"is of iresnet18: expected distill\.model=iresnet10, or leave"),
        ({"fc.weight": torch.zeros(2)}, WeightsError, "found no network of ours among 1 names"),
        (torch.zeros(3), WeightsError, "holds Tensor: expected the state dict"),
        (SimpleNamespace(), WeightsError, "would run code"),  # an object that weights_only refuses
    ]:
        torch.save(content, path)
        with pytest.raises(error, match=complaint):
            load(config)
    path.write_bytes(b"no file of torch's")
    with pytest.raises(WeightsError, match=r"backbone\.pth cannot be read as weights"):
        load(config)


def test_a_state_dict_may_be_given_other_pixels_and_a_checkpoint_may_not(trainer, images, tmp_path):
    path = tmp_path / "backbone.pth"
    torch.save(trainer.step.backbone.state_dict(), path)
    bgr = override(taught_by(trainer.config, path, NAME), ["distill.input={color: bgr}"])
    teacher = load(bgr)
    assert torch.equal(teacher.embed(images), expected(trainer, images.flip(1)))
    assert teacher.fingerprint == fingerprint_teacher(bgr)
    assert teacher.fingerprint != fingerprint_teacher(override(bgr, ["distill.input={}"]))
    with pytest.raises(TeacherError, match=r"in NCHW, and it would be given .* NHWC"):
        load(override(bgr, ["distill.input={layout: nhwc}"]))
    saved = override(bgr, [f"distill.teacher={trainer.last_checkpoint}"])
    with pytest.raises(TeacherError, match="expected none for a checkpoint of ours"):
        load(saved)
