"""How gradients travel: in pieces that fit the model, narrow on GPUs, once a step."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

from models import create_model
from tests.ranks import run_ranks
from tests.training import tiny
from training.config import Config, ConfigError, override
from training.distributed import World
from training.loop import Trainer
from training.step import backbone as backbone_module
from training.step.backbone import bucket_size, compression, create_backbone
from training.step.optim import set_learning_rate
from training.step.precision import Precision, choose_precision

STEPS = 4


def precision(dtype: torch.dtype) -> Precision:
    return Precision(dtype, torch.float32, loss_scaling=False, tf32=False, reason="tested")


@pytest.mark.parametrize(
    ("name", "width", "expected"),
    [("iresnet10", 0.25, 1.68), ("iresnet50", 1.0, 20.8), ("iresnet200", 1.0, 25.0)],
)
def test_buckets_are_an_eighth_of_the_gradients_within_reason(name, width, expected):
    with torch.device("meta"):
        model = create_model(name, width=width)
    assert bucket_size(model) == pytest.approx(expected, rel=0.02)


def test_gpus_send_gradients_in_the_steps_16_bits_and_cpus_whole():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert compression(gpu, precision(torch.float16)) is default_hooks.fp16_compress_hook
    assert compression(gpu, precision(torch.bfloat16)) is default_hooks.bf16_compress_hook
    assert compression(gpu, precision(torch.float32)) is None
    assert compression(cpu, precision(torch.bfloat16)) is None


def gradients_of(world: World, config: Config) -> dict[str, tuple[str, torch.Tensor]]:
    """With and without compression: how they are averaged in words, and the gradients, flat.

    On a CPU, which is taken for a device that compresses.
    """
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        hook = default_hooks.fp16_compress_hook  # gloo has no bfloat16
        patch.setattr(backbone_module, "compression", lambda device, precision: hook)
        for wanted in ("true", "false"):
            settings = override(config, [f"step.compress_gradients={wanted}"])
            backbone, about = create_backbone(settings, world, precision(torch.float16))
            generator = torch.Generator().manual_seed(world.rank)
            images = torch.randn(4, 3, tiny.SIZE, tiny.SIZE, generator=generator)
            backbone(images).square().sum().backward()
            grads = [p.grad.flatten() for p in backbone.parameters() if p.requires_grad]
            found[wanted] = (about, torch.cat(grads))
    return found


@pytest.mark.slow
def test_gradients_travel_narrow_only_where_it_is_wanted(tmp_path):
    """step.compress_gradients=false averages in float32; both give every rank the same."""
    config = tiny.config(tmp_path, tmp_path / "run")
    ranks = run_ranks(gradients_of, config, world_size=2, folder=tmp_path)
    for wanted, width in (("true", "float16"), ("false", "float32")):
        (about, grad), (_, other) = (rank[wanted] for rank in ranks)
        assert f"gradients averaged in {width}" in about
        assert torch.equal(grad, other)
        assert torch.equal(grad, grad.half().float()) == (width == "float16")
    narrow, whole = ranks[0]["true"][1], ranks[0]["false"][1]
    torch.testing.assert_close(narrow, whole, rtol=0.01, atol=0.001 * float(whole.abs().max()))


def test_statistics_over_all_ranks_need_gpus(tmp_path):
    config = override(tiny.config(tmp_path, tmp_path / "run"), ["model.sync_bn=true"])
    world = World(0, 1, 0, 1, torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"model\.sync_bn=True: expected a GPU"):
        create_backbone(config, world, choose_precision(world.device, "fp32"))


def train_in_parts(world: World, config: Config) -> tuple[list[float], list, int]:
    """Losses and weights of four steps with BatchNorm frozen, and all_reduces of the last."""
    trainer = Trainer(
        config,
        world,
        precision=choose_precision(world.device, "fp32"),
    )
    trainer.step.backbone.eval()
    losses = []
    stream = trainer.loader.stream(0)
    for number in range(STEPS):
        images, labels, *_ = next(stream)
        lr = set_learning_rate(trainer.step.optimizer, 0.0003)
        last = number == STEPS - 1
        with torch.profiler.profile() if last else nullcontext() as profile:
            losses.append(trainer.step(images, labels, lr, lambda phase: None).loss.item())
    events = profile.key_averages()
    reduced = sum(event.count for event in events if event.key == "gloo:all_reduce")
    stream.close()
    trainer.reporter and trainer.reporter.close()
    dist.barrier()
    weights = [p.detach().numpy() for p in trainer.step.backbone.parameters()]
    return losses, weights, reduced


@pytest.mark.slow
def test_parts_on_two_ranks_make_the_step_of_one_and_average_once(tmp_path):
    data = tiny.write_set(tmp_path / "data")
    results = {}
    for world_size, parts in ((1, 1), (2, 1), (2, 3)):
        config = override(
            tiny.config(Path(data), tmp_path / f"run{world_size}{parts}"),
            [f"step.micro_batches={parts}"],
        )
        results[world_size, parts] = run_ranks(
            train_in_parts, config, world_size=world_size, folder=tmp_path
        )[0]
    losses, weights, _ = results[1, 1]
    for other_losses, other_weights, _ in (results[2, 1], results[2, 3]):
        assert other_losses == pytest.approx(losses, abs=1e-5)
        for one, other in zip(weights, other_weights, strict=True):
            assert abs(one - other).max() <= 1e-5 * max(1, abs(one).max())
    # The head's statistics of each part, and all gradients in two buckets.
    assert [results[2, parts][2] for parts in (1, 3)] == [1 + 2, 3 + 2]
