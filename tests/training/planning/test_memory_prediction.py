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
from models import create_model, normalize
from models.checkpointing import checkpoint_blocks
from pipeline.dali_decode import PREFETCH
from pipeline.dali_loader import Loader
from pipeline.records.index import open_index
from tests.training import tiny
from training.assembly import create_head
from training.config import Config, override
from training.distributed import World
from training.loop import Trainer
from training.planning import memory
from training.planning.memory import (
    Prediction,
    activation_bytes,
    available_memory,
    predict,
    resident_memory,
)
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


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_activations_are_what_a_real_batch_keeps(dtype):
    config, precision = configured("model.dropout=0.3"), choose_precision(CPU, dtype)
    backbone, batch, size = create_backbone(config), 24, config.data.image_size
    kept = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()

    images = torch.zeros(batch, size, size, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        precision.autocast(CPU),
    ):
        backbone(normalize(images, precision.compute_dtype))
    for tensor in (*backbone.parameters(), *backbone.buffers()):
        kept.pop(tensor.data_ptr(), None)
    found = activation_bytes(backbone, batch=batch, image_size=size, precision=precision)
    assert found == pytest.approx(sum(kept.values()), rel=0.05)


@pytest.mark.slow
def test_blocks_that_run_again_have_as_much_alive_as_a_real_step():
    """Counted at every operator of one, and with it what malloc is left with, on a CPU alone."""
    config = configured("model.checkpointing=true", "data.global_batch=96")
    network = create_backbone(config)
    checkpoint_blocks(network, config.architecture.family.stages)
    step = memory._ForwardBackward(network)
    for parameter in filter(lambda one: one.requires_grad, network.parameters()):
        parameter.register_post_accumulate_grad_hook(memory._forget_gradient)
    pixels = torch.zeros(96, 3, tiny.SIZE, tiny.SIZE).contiguous(memory_format=torch.channels_last)
    with memory._Living() as living:
        living.forget()
        step(pixels.clone(), FP32)
    found = memory._activations_again(network, batch=96, image_size=tiny.SIZE, precision=FP32)
    assert sum(found) == pytest.approx(sum(living.peak), rel=0.05)
    on_cpu, on_gpu = (
        predict(
            config, replace(ALONE, device=torch.device(device)), FP32, num_classes=CLASSES
        ).activations
        for device in ("cpu", "cuda")
    )
    assert on_gpu == sum(found)
    assert on_cpu == on_gpu + found.small // 2


def test_activations_of_a_gpus_float16_are_found_on_any_machine():
    backbone = create_backbone(configured())
    half, bf16 = (
        activation_bytes(
            backbone, batch=24, image_size=tiny.SIZE, precision=replace(FP32, compute_dtype=dtype)
        )
        for dtype in (torch.float16, torch.bfloat16)
    )
    assert half == bf16


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


def test_it_is_told_in_one_line():
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
        "neighbors 0, transients 2, loader 0, teacher 30, checkpoint 750, verification 80"
    )
    assert found.total == sum(found.parts.values())


def test_ranks_of_a_machine_share_what_is_free_and_have_what_they_took(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 8000 kB\n")
    monkeypatch.setattr(memory, "_LIMIT", tmp_path / "memory.max")
    monkeypatch.setattr(memory, "resident_memory", lambda: 100 << 10)
    assert available_memory(CPU, local_world_size=1) == 8100 << 10
    assert available_memory(CPU, local_world_size=4) == 2100 << 10
    (tmp_path / "memory.max").write_text(f"{4000 << 10}\n")  # of the container
    assert available_memory(CPU, local_world_size=4) == 1000 << 10


def test_what_is_here_already_counts():
    assert resident_memory() > 1 << 26
    assert predicted(configured()).libraries > resident_memory()


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


def test_what_is_alive_at_once_is_found_without_a_gradient():
    """Of five maps of one size in a row two are alive beside the images, uint8 and normalized."""
    network = nn.Sequential(*[nn.AvgPool2d(1) for _ in range(5)])
    found = memory._inference(
        network, batch=8, image_size=32, precision=FP32, run_on=torch.device("cpu")
    )
    pixels = 8 * 3 * 32 * 32
    assert sum(found) == pixels + 3 * 4 * pixels


def test_a_forward_without_a_gradient_is_of_the_network_as_it_is_folded():
    """On a CPU it then overwrites its maps."""
    with torch.device("meta"):
        network = create_model("iresnet10")

    def largest(device: str) -> int:
        run_on = torch.device(device)
        return memory._inference(
            network, batch=64, image_size=112, precision=FP32, run_on=run_on
        ).large

    map_bytes = 64 * 64 * 112 * 112 * 4
    assert largest("cpu") < 3 * map_bytes
    assert largest("cuda") > 4 * map_bytes
