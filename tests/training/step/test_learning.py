"""What is frozen stays to the bit and costs nothing; the rest learns at the rates asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models.iresnet import STAGES
from tests.ranks import run_ranks
from tests.training import tiny
from training.config import Config, ConfigError, OptimConfig, override
from training.distributed import World
from training.loop import Trainer
from training.planning.memory import predict
from training.saving.files import CheckpointError
from training.step.backbone import average_statistics, create_backbone, unwrapped
from training.step.compile import compile_backbone
from training.step.learning import create_network, freeze, rate_factors
from training.step.optim import create_optimizer, set_learning_rate
from training.step.precision import choose_precision

CPU = torch.device("cpu")
FP32 = choose_precision(CPU, "fp32")
EARLY = ("conv1.*", "bn1.*", "prelu.*", "layer1.*", "layer2.*")
FROZEN = f"optim.freeze=[{','.join(EARLY)}]"


def config_with(*changes: str) -> Config:
    return override(tiny.config(Path("a.rec"), Path("run")), changes)


def network() -> nn.Module:
    torch.manual_seed(0)
    return config_with().architecture.create().train()


def build(config: Config, world: World, *changes: str) -> Trainer:
    return Trainer(override(config, changes), world, precision=FP32)


def weights(trainer: Trainer) -> dict[str, Tensor]:
    """Parameters, statistics, momentum and centers, as copies."""
    step = trainer.step
    named = dict(unwrapped(step.backbone).named_parameters())
    momentum = {
        f"momentum of {name}": value
        for name, parameter in named.items()
        for value in step.optimizer.state.get(parameter, {}).values()
    }
    state = unwrapped(step.backbone).state_dict() | momentum | {"centers": step.head.centers}
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in after if not torch.equal(before[name], after[name])}


def is_early(name: str) -> bool:
    return name.partition(".")[0] in {pattern.partition(".")[0] for pattern in EARLY}


@pytest.mark.slow
def test_frozen_layers_stay_to_the_bit_with_their_statistics_and_others_learn(
    data, world, tmp_path
):
    trainer = build(tiny.config(data, tmp_path), world, FROZEN, "run.epochs=1")
    before = weights(trainer)
    trainer.run()
    after = weights(trainer)
    assert not any(map(is_early, changed(before, after)))
    late = {name for name in before if not is_early(name) and name != "features.weight"}
    assert changed(before, after) == late
    assert not any(name.startswith("momentum of ") and is_early(name[12:]) for name in before)
    parameters = unwrapped(trainer.step.backbone).named_parameters()
    assert all(p.grad is None for name, p in parameters if is_early(name))


def test_what_is_frozen_is_said_and_is_no_part_of_the_memory_or_of_what_ranks_average(tmp_path):
    whole, part = (
        override(tiny.config(tmp_path, tmp_path / "run"), changes) for changes in ([], [FROZEN])
    )
    world = World(0, 1, 0, 1, CPU)
    one, other = (predict(config, world, FP32, num_classes=10) for config in (whole, part))
    frozen = sum(p.nbytes for name, p in network().named_parameters() if is_early(name))
    assert one.backbone - other.backbone == 2 * frozen > 0, "gradient and momentum"
    assert one.checkpoint - other.checkpoint == frozen
    assert one.activations > other.activations
    backbone, about = create_backbone(part, world, FP32)
    assert about == "0.30 of 0.32 M parameters, statistics of 9 BatchNorms stay as they are"
    optimizer = create_optimizer(backbone.parameters(), part.optim, CPU)
    assert len(optimizer.state) == sum(p.requires_grad for p in backbone.parameters())


def two_ranks(world: World, config: Config) -> tuple[dict[str, Tensor], set[str], int, int]:
    trainer = build(config, world)
    before = weights(trainer)
    trainer.run()
    sent = trainer.step.backbone._get_ddp_logging_data()["total_parameter_size_bytes"]
    learning = [p for p in trainer.step.backbone.parameters() if p.requires_grad]
    after = weights(trainer)
    return after, changed(before, after), sent, sum(p.nbytes for p in learning)


@pytest.mark.slow
def test_ranks_send_no_gradients_of_what_is_frozen_and_end_alike(data, tmp_path):
    changes = [FROZEN, "step.micro_batches=2", "run.epochs=1", "model.checkpointing=true"]
    config = override(tiny.config(data, tmp_path / "run"), changes)
    ranks = run_ranks(two_ranks, config, world_size=2, folder=tmp_path)
    for after, moved, sent, learning in ranks:
        assert sent == learning
        assert moved
        assert not any(map(is_early, moved))
        for name, tensor in after.items():
            assert name == "centers" or torch.equal(tensor, ranks[0][0][name])


def averaged(world: World) -> tuple[Tensor, Tensor]:
    """Fixed statistics, whose sum over three ranks cannot be divided exactly, and others."""
    model = nn.Sequential(nn.BatchNorm1d(1), nn.BatchNorm1d(1))
    freeze(model, config_with("optim.freeze=[0.*]"))
    for norm in model:
        norm.running_mean.fill_(0.1 + (world.rank if norm.training else 0))
    average_statistics(model)
    return model[0].running_mean, model[1].running_mean


@pytest.mark.slow
def test_statistics_that_stay_are_not_averaged_which_would_round_them(tmp_path):
    for fixed, moving in run_ranks(averaged, world_size=3, folder=tmp_path):
        assert torch.equal(fixed, torch.tensor([0.1]))
        torch.testing.assert_close(moving, torch.tensor([1.1]))


@pytest.mark.slow
def test_freeze_bn_keeps_all_statistics_while_scales_and_shifts_learn(data, world, tmp_path):
    trainer = build(
        tiny.config(data, tmp_path), world, "optim.freeze_bn=true", "run.epochs=1", "optim.lr=0.1"
    )
    before = weights(trainer)
    trainer.run()
    moved = changed(before, weights(trainer))
    assert not any("running_" in name or "num_batches" in name for name in moved)
    assert {"bn1.weight", "bn1.bias", "layer4.0.bn2.weight", "centers"} <= moved


def test_without_a_setting_a_norm_that_never_learned_takes_statistics_all_the_same():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2).requires_grad_(False))
    freeze(model, config_with())
    assert model[1].training


def test_in_the_first_epochs_only_the_centers_learn(data, world, tmp_path):
    """And no momentum gathers, which would break loose after them."""
    trainer = build(tiny.config(data, tmp_path), world, "optim.freeze_epochs=0.4")
    stream, moved = trainer.loader.stream(0), []
    for _ in range(4):
        before = weights(trainer)
        trainer.train_on(next(stream), lambda phase: None)
        moved.append(changed(before, weights(trainer)))
    assert moved[:2] == [{"centers"}, {"centers"}]
    assert {"conv1.weight", "bn1.running_mean", "momentum of fc.weight", "centers"} <= moved[2]
    trainer.close()


def test_a_rate_of_its_own_moves_parameters_that_much_less():
    moves = {}
    for rates in ({}, {"layer1.*": 0.25, "fc.weight": 2.0}):
        model = network()
        config = OptimConfig(rates=rates, weight_decay=0.01)
        optimizer = create_optimizer(
            model.parameters(), config, CPU, factors=rate_factors(model, config)
        )
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizer.found_inf = torch.zeros(())
        rate = set_learning_rate(optimizer, 0.5)
        assert rate == 0.5
        assert set_learning_rate(optimizer, 0.5) is rate
        optimizer.step()
        moves[bool(rates)] = {n: p - before[n] for n, p in model.named_parameters()}
    for name, plain in moves[False].items():
        factor = 0.25 if name.startswith("layer1.") else 2.0 if name == "fc.weight" else 1.0
        torch.testing.assert_close(moves[True][name], factor * plain, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_run_that_goes_on_has_the_same_bits_and_no_other_frozen_layers(data, world, tmp_path):
    """Interrupted where the backbone has just begun to learn."""
    settings = [
        *(FROZEN, "optim.rates={layer3.*: 0.5, fc.*: 2}"),
        *("optim.freeze_epochs=0.6", "step.micro_batches=2", "run.epochs=2"),
    ]
    whole = build(tiny.config(data, tmp_path / "whole"), world, *settings)
    whole.run()
    config = override(tiny.config(data, tmp_path / "parts"), settings)
    first = build(config, world)
    stream = first.loader.stream(0)
    for _ in range(4):
        first.train_on(next(stream), lambda phase: None)
    first.save()
    first.close()
    second = build(config, world)
    assert second.steps_done == 4
    second.run()
    assert changed(weights(whole), weights(second)) == set()
    with pytest.raises(CheckpointError, match=r"optim\.freeze was .* is \[\]\. They change the"):
        build(config, world, "optim.freeze=[]")


@pytest.mark.slow
@pytest.mark.parametrize("change", [FROZEN, "model.lora_rank=2"])
def test_a_backbone_of_which_a_part_learns_compiles(change, monkeypatch):
    config = config_with(change)
    networks = []
    for _ in range(2):
        torch.manual_seed(0)
        networks.append(create_network(config).train())
        freeze(networks[-1], config)
    original = nn.Module.compile
    monkeypatch.setattr(
        nn.Module, "compile", lambda self, **how: original(self, backend="aot_eager", **how)
    )
    model, plain = networks
    sizes = {"batch": 4, "image_size": tiny.SIZE, "precision": FP32}
    assert compile_backbone(model, stages=STAGES, alone=False, **sizes).startswith("compiled 4")
    images = torch.randn(4, 3, tiny.SIZE, tiny.SIZE)
    for one in networks:
        one(images).square().sum().backward()
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters()):
        assert (ours.grad is None) == (theirs.grad is None) == (not theirs.requires_grad), name
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_a_run_that_begins_at_a_checkpoint_of_more_frozen_layers_has_no_momentum_of_them(
    data, world, tmp_path
):
    first = build(tiny.config(data, tmp_path / "first"), world, FROZEN, "run.epochs=1")
    first.run()
    begun = ["run.epochs=2", f"run.resume={tmp_path / 'first'}"]
    with pytest.raises(CheckpointError, match=r"conv1\.weight.*run\.init_from"):
        build(tiny.config(data, tmp_path / "second"), world, *begun)
    build(tiny.config(data, tmp_path / "third"), world, *begun, FROZEN).close()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("optim.freeze=[layer9.*]", r"'layer9\.\*' fits no parameter.*Near are layer\d\.\*"),
        ("optim.freeze=[fc.wieght]", r"'fc\.wieght' fits no.*Near are fc\.weight"),
        ("optim.freeze=['*']", "found none left.*optim.freeze_epochs"),
        ("optim.rates={layer1: 0.1}", r"optim\.rates.*'layer1' fits no.*layer1\.\*"),
        (
            "optim.rates={layer1.*: 1, '*.weight': 2}",
            r"fits 'layer1\.\*' and '\*\.weight', expected",
        ),
    ],
)
def test_patterns_that_fit_nothing_or_too_much_are_refused_before_anything_is_allocated(
    change, complaint, tmp_path
):
    config = override(tiny.config(tmp_path, tmp_path / "run"), [change])
    with pytest.raises(ConfigError, match=complaint):
        predict(config, World(0, 1, 0, 1, CPU), FP32, num_classes=10)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (["optim.freeze_epochs=4"], r"optim\.freeze_epochs=4.*at most run\.epochs=3"),
        (["optim.rates={fc.*: 0}"], r"optim\.rates\['fc\.\*'\]=0.*above 0"),
        (["optim.freeze_bn=true", "model.sync_bn=true"], r"model\.sync_bn=True.*optim\.freeze_bn"),
    ],
)
def test_what_is_out_of_range_is_refused(change, complaint, tmp_path):
    with pytest.raises(ConfigError, match=complaint):
        override(tiny.config(tmp_path, tmp_path / "run"), change)
