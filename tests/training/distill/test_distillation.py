"""The distillation loss: its value, its gradient, its weight, and where the targets come from."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from heads import ArcFace, PartialFC
from pipeline.collection import Collection
from pipeline.records.index import open_index
from tests.graph_safety import GraphSafety
from tests.training import tiny
from training.config import ConfigError, DistillConfig, override
from training.distill.distillation import Distillation, cosine_loss, create_distillation, l2_loss
from training.distill.embedding_cache import EmbeddingCacheError, write_embeddings
from training.distill.teacher import fingerprint_teacher, load_teacher
from training.step.precision import choose_precision

CPU = torch.device("cpu")
FP32 = choose_precision(CPU, "fp32")
B, D = 6, 16


pytestmark = pytest.mark.usefixtures("world")


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, B, D, generator=generator)
    return student.requires_grad_(), 3 * teacher


def distillation(config, total_steps=11):
    return Distillation(
        config,
        lambda images, records: torch.zeros(B, D),
        total_steps=total_steps,
        device=CPU,
        source="a test's",
    )


def test_losses_are_those_of_scalar_loops(pair):
    student, teacher = (embeddings.detach().double() for embeddings in pair)
    cosines, distances = [], []
    for s, t in zip(student.tolist(), teacher.tolist()):
        dot = sum(a * b for a, b in zip(s, t))
        cosines.append(1 - dot / math.sqrt(sum(a * a for a in s) * sum(b * b for b in t)))
        distances.append(sum((a - b) ** 2 for a, b in zip(s, t)) / D)
    assert cosine_loss(student, teacher).item() == pytest.approx(sum(cosines) / B)
    assert l2_loss(student, teacher).item() == pytest.approx(sum(distances) / B)


def test_cosine_compares_directions_and_l2_lengths_too(pair):
    _, teacher = pair
    assert cosine_loss(5 * teacher, teacher) == pytest.approx(0, abs=1e-6)
    assert cosine_loss(-teacher, teacher) == pytest.approx(2)
    assert l2_loss(teacher, teacher) == 0
    assert l2_loss(5 * teacher, teacher) > 1


@pytest.mark.parametrize("loss", ["cosine", "l2"])
def test_a_teachers_embedding_of_zeros_gives_no_nan(loss, pair):
    """What the cache holds for an image that does not decode."""
    student, _ = pair
    distillation(DistillConfig(loss=loss))(student, torch.zeros(B, D)).backward()
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (DistillConfig(weight=2.0, weight_end=0.5), [2.0, 1.25, 0.5]),
        (DistillConfig(weight=0.0, weight_end=4.0), [0.0, 2.0, 4.0]),
        (DistillConfig(weight=3.0), [3.0, 3.0, 3.0]),
    ],
)
def test_the_weight_is_linear_from_the_first_step_to_the_last(config, expected, pair):
    student, teacher = pair
    distilled = distillation(config)
    tensor = distilled.weight
    for step, weight in zip((0, 5, 10), expected):
        distilled.set_step(step)
        assert distilled.weight is tensor, "what a recorded step reads must stay where it is"
        assert tensor.item() == pytest.approx(weight)
        loss = distilled(student, teacher)
        assert loss.item() == pytest.approx(weight * cosine_loss(student, teacher).item())


def test_a_run_of_one_step_has_the_first_weight():
    distilled = distillation(DistillConfig(weight=2.0, weight_end=1.0), total_steps=1)
    distilled.set_step(0)
    assert distilled.weight.item() == 2.0


def test_beside_the_head_gradients_add_up(pair):
    student, teacher = pair
    labels = torch.arange(B)
    head = PartialFC(num_classes=B, embedding_dim=D, margin=ArcFace())
    distilled = distillation(DistillConfig(weight=0.7))
    (of_head,) = torch.autograd.grad(head(student, labels), student)
    (of_teacher,) = torch.autograd.grad(distilled(student, teacher), student)
    (head(student, labels) + distilled(student, teacher)).backward()
    torch.testing.assert_close(student.grad, of_head + of_teacher)


@pytest.mark.parametrize("loss", ["cosine", "l2"])
def test_nothing_is_read_from_the_device(loss, pair):
    student, teacher = pair
    with GraphSafety():
        distillation(DistillConfig(loss=loss))(student, teacher).backward()


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A configuration whose teacher is a network as arcface_torch would have saved it."""
    from models import create_model

    folder = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(0)
    network = create_model("iresnet10", embedding_dim=D, image_size=tiny.SIZE)
    torch.save(network.state_dict(), folder / "backbone.pth")
    config = tiny.config(tiny.write_set(folder / "data"), folder / "run")
    teacher = DistillConfig(teacher=str(folder / "backbone.pth"), model="iresnet10")
    return dataclasses.replace(config, distill=teacher)


def create(config):
    records = Collection.of(open_index(config.data.train))
    return create_distillation(config, records, total_steps=5, device=CPU, precision=FP32)


def test_without_a_teacher_there_is_none(taught):
    assert create(dataclasses.replace(taught, distill=DistillConfig())) is None


def test_a_teacher_is_asked_for_the_very_images_the_student_sees(taught):
    images = torch.randint(0, 256, (B, 3, tiny.SIZE, tiny.SIZE), dtype=torch.uint8)
    teacher = load_teacher(taught, device=CPU, precision=FP32)
    distilled = create(taught)
    assert torch.equal(distilled.targets(images, np.arange(B)), teacher.embed(images))
    assert (
        f"cosine loss × 1 → 1, teacher {taught.distill.teacher} ({teacher.fingerprint}), "
        f"given RGB in [-1, 1], {tiny.SIZE} pixels, NCHW, computed" in str(distilled)
    )


def test_cached_embeddings_are_looked_up_by_record(taught):
    cached = override(taught, ["distill.cached=true"])
    with pytest.raises(EmbeddingCacheError, match=r"Run `python tools/cache_teacher\.py CONFIG`"):
        create(cached)
    index = open_index(taught.data.train)
    rows = np.random.default_rng(0).normal(size=(len(index), D)).astype(np.float32)
    teacher = fingerprint_teacher(taught)
    path = write_embeddings(index, lambda first: [rows[first:]], teacher=teacher, embedding_dim=D)
    records = np.array([3, 69, 0, 3, 12, 40])
    found = create(cached).targets(torch.empty(0), records)
    assert torch.equal(found, torch.from_numpy(rows[records].astype(np.float16)).float())
    path.unlink()


def test_a_teacher_of_another_length_is_refused_with_the_remedy(taught):
    index = open_index(taught.data.train)
    rows = np.zeros((len(index), D + 1), np.float32)
    teacher = fingerprint_teacher(taught)
    path = write_embeddings(index, lambda first: [rows], teacher=teacher, embedding_dim=D + 1)
    with pytest.raises(ConfigError, match=r"model\.embedding_dim=16: expected 17, as long as"):
        create(override(taught, ["distill.cached=true"]))
    path.unlink()


@pytest.mark.parametrize(
    ("override_", "complaint"),
    [
        ("distill.weight=-1", r"distill\.weight=-1\.0: expected at least 0"),
        ("distill.weight_end=-1", r"distill\.weight_end=-1\.0: expected at least 0"),
        ("distill.loss=kl", r"distill\.loss.*kl"),
        ("distill.input={colour: bgr}", r"distill\.input: colour: expected some of size, color"),
        ("distill.model=r50", r"distill\.model='r50': expected none, or the name .*'iresnet50'"),
    ],
)
def test_wrong_values_are_refused_with_what_is_allowed(taught, override_, complaint):
    plain = dataclasses.replace(taught, distill=DistillConfig())
    with pytest.raises(ConfigError, match=complaint):
        override(plain, [override_])
