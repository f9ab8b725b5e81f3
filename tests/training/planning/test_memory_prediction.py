"""Every part of the predicted memory is what a real step holds, and nothing is allocated for it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from heads.centers import shard_of
from heads.memory import predict_memory
from heads.sampling import GroupClasses, RandomClasses
from models import create_model
from pipeline.dali_decode import PREFETCH
from pipeline.dali_loader import Loader
from pipeline.records.index import open_index
from tests.training import tiny
from training.assembly import create_head
from training.config import Config, override
from training.distributed import World
from training.loop import Trainer
from training.planning import memory
from training.planning.machine import own_memory
from training.planning.memory import Prediction, predict
from training.saving.state import HostCopy, read_state
from training.step.optim import create_optimizer
from training.step.precision import choose_precision

CPU = torch.device("cpu")
ALONE = World(rank=0, world_size=1, local_rank=0, local_world_size=1, device=CPU)
FP32 = choose_precision(CPU, "fp32")
CLASSES = 1000


def configured(*overrides: str) -> Config:
    return override(tiny.config(Path("data"), Path("run")), list(overrides))


def predicted(config: Config, *, world_size: int = 1) -> Prediction:
    world = replace(ALONE, world_size=world_size)
    return predict(config, world, FP32, num_classes=CLASSES)


def create_backbone(config: Config) -> nn.Module:
    return create_model(
        config.model.name,
        embedding_dim=config.model.embedding_dim,
        dropout=config.model.dropout,
        width=config.model.width,
        image_size=config.data.image_size,
    )


def nbytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


@pytest.mark.slow
def test_nothing_is_allocated_to_find_out():
    """Terabytes of activations."""
    config = configured("model.name=iresnet200", "model.width=1", "data.global_batch=1000000")
    assert predicted(config).activations > 1e12


@pytest.mark.parametrize("optimizer", ["name=sgd", "name=adamw", "momentum=0"])
def test_the_backbone_comes_with_gradients_optimizer_state_and_a_copy_of_its_statistics(optimizer):
    config = configured(f"optim.{optimizer}")
    backbone = create_backbone(config)
    state = create_optimizer(backbone.parameters(), config.optim, CPU).state.values()
    held = nbytes(backbone.parameters()) + 2 * nbytes(backbone.buffers())
    held += nbytes(p for p in backbone.parameters() if p.requires_grad)
    held += nbytes(tensor for tensors in state for tensor in tensors.values() if tensor.ndim)
    assert predicted(config).backbone == held


def test_centers_and_momentum_are_those_of_the_head():
    config = configured("head.subcenters=2")
    head = create_head(config, ALONE, num_classes=CLASSES, precision=FP32)
    found = predicted(config)
    assert (found.centers, found.momentum) == (head.centers.nbytes, head.velocity.nbytes)


def test_expectations_are_those_of_the_head():
    config = configured("head.subcenters=2", "head.expectation_margin=0.4")
    head = create_head(config, ALONE, num_classes=CLASSES, precision=FP32)
    found, without = predicted(config), predicted(configured("head.subcenters=2"))
    assert found.centers - without.centers == head.expectations.nbytes
    assert found.checkpoint - without.checkpoint == head.expectations.nbytes
    assert found.transients > without.transients


def test_tables_of_neighbors_are_those_of_the_head():
    config = configured("head.sample_count=100", "head.hard_negatives=0.5", "head.subcenters=2")
    head = create_head(config, ALONE, num_classes=CLASSES, precision=FP32)
    found, without = predicted(config), predicted(configured("head.subcenters=2"))
    table = head.neighbors
    assert found.neighbors == nbytes([table.ids, table.best, table.kept])
    assert found.checkpoint - without.checkpoint == found.neighbors
    assert without.neighbors == 0


@pytest.mark.parametrize(
    ("overrides", "sampling", "forwards"),
    [
        (["head.sample_rate=0.1", "head.sample_rate_from={2: 0.5}"], RandomClasses(0.5), 1),
        (["head.sample_rate=0.1", "step.micro_batches=3"], RandomClasses(0.1), 3),
        (["head.sample_count=700"], RandomClasses(700 / CLASSES), 1),
        (["head.sample_groups=50", "head.random_groups=4"], GroupClasses(50, random_groups=4), 1),
    ],
)
def test_transients_are_those_of_the_largest_sample_of_a_run(overrides, sampling, forwards):
    config = configured(*overrides)
    head = predict_memory(
        shard_of(CLASSES, rank=0, world_size=1),
        config.model.embedding_dim,
        sampling,
        global_batch=config.data.global_batch // forwards,
        adding=forwards > 1,
    )
    assert predicted(config).transients == head.step


@pytest.mark.parametrize(("augment", "queued"), [("flip", 0), ("light", PREFETCH)])
def test_batches_ahead_are_those_of_the_loader(tmp_path, augment, queued):
    config = configured(f"data.augment=[{augment}]", "data.threads=3")
    loader = Loader(
        open_index(tiny.write_set(tmp_path) / "train.rec"),
        global_batch=config.data.global_batch,
        device=CPU,
        augment=config.data.augment,
        image_size=config.data.image_size,
        threads=config.data.threads,
    )
    assert loader.uses_dali == bool(queued)
    with closing(loader.stream(0)) as stream:
        batch = next(stream)
    in_use = nbytes([batch.images, batch.labels])
    assert predicted(config).loader == (1 + config.data.threads + PREFETCH + queued) * in_use


def test_ranks_and_micro_batches_divide():
    whole, shared, parts = (
        predicted(configured("data.global_batch=96")),
        predicted(configured("data.global_batch=96"), world_size=4),
        predicted(configured("data.global_batch=96", "step.micro_batches=4")),
    )
    assert shared.centers * 4 == whole.centers
    assert shared.loader * 4 == whole.loader == parts.loader
    assert shared.backbone == whole.backbone == parts.backbone
    assert shared.activations == parts.activations == pytest.approx(whole.activations / 4, rel=0.01)


def test_it_is_printed_in_one_line():
    found = Prediction(
        libraries=500_000_000,
        backbone=350_000_000,
        activations=620_000_000,
        centers=200_000_000,
        momentum=200_000_000,
        neighbors=0,
        transients=1_600_000,
        loader=0,
        teacher=30_000_000,
        checkpoint=750_000_000,
        verification=80_000_000,
    )
    assert str(found) == (
        "2,732 MB a rank: libraries 500, backbone 350, activations 620, centers 200, momentum 200, "
        "transients 2, teacher 30, checkpoint 750, verification 80"
    )
    assert found.total == sum(found.parts.values())


def test_what_is_here_already_counts():
    assert own_memory() > 1 << 26
    assert predicted(configured()).libraries > own_memory()


@pytest.mark.parametrize("optimizer", ["name=sgd", "name=adamw", "momentum=0"])
def test_a_checkpoints_copy_is_what_a_run_copies(world, data, tmp_path, optimizer):
    overrides = [f"optim.{optimizer}", "data.threads=1"]
    config = override(tiny.config(data, tmp_path / "run"), overrides)
    trainer = Trainer(config, world, precision=FP32)
    trainer.close()
    copied = pytree.tree_leaves(HostCopy()(read_state(trainer.step)))
    held = nbytes(tensor for tensor in copied if isinstance(tensor, Tensor) and tensor.ndim)
    assert trainer.prediction.checkpoint == pytest.approx(held, rel=0.01)


@pytest.mark.slow
def test_a_teacher_comes_with_its_weights_and_a_forward_of_the_whole_batch(tmp_path):
    config = configured(f"distill.teacher={tmp_path / 'teacher.pth'}")
    dim, size = config.model.embedding_dim, config.data.image_size
    weights = create_model("iresnet18", embedding_dim=dim, image_size=size)
    torch.save(weights.state_dict(), tmp_path / "teacher.pth")
    held = nbytes([*weights.parameters(), *weights.buffers()])
    whole = predicted(config).teacher
    assert whole > held
    parts = override(config, ["data.global_batch=96", "step.micro_batches=48"])
    assert predicted(parts).teacher > whole, "its batch is not split"
    looked_up = override(config, ["distill.cached=true"])
    assert predicted(looked_up).teacher == 0


@pytest.mark.slow
def test_verification_counts_where_it_takes_more_than_a_step():
    none, small, large = (
        predicted(configured(*overrides)).verification
        for overrides in (
            [],
            ["eval.sets=[a.bin]", "eval.batch_size=1", "data.global_batch=96"],
            ["eval.sets=[a.bin]", "eval.batch_size=4096"],
        )
    )
    backbone = create_backbone(configured())
    assert none == 0
    held = nbytes([*backbone.parameters(), *backbone.buffers()])
    assert small == held + memory._TO_VERIFY
    assert large > small + 100 * held


def test_the_embeddings_of_the_largest_test_set_count_on_a_cpu():
    """On an accelerator they are in the host's memory."""
    config = configured("eval.sets=[ijbc:images]")
    none, many = (
        predict(config, ALONE, FP32, num_classes=CLASSES, scored_images=images).verification
        for images in (0, 469_375)
    )
    embeddings = 469_375 * 4 * config.model.embedding_dim
    assert none + 2 * embeddings < many < none + 20 * embeddings
    gpu = replace(ALONE, device=torch.device("cuda"))
    few, most = (
        predict(config, gpu, FP32, num_classes=CLASSES, scored_images=images).verification
        for images in (0, 469_375)
    )
    assert few == most
