"""The optimizers: plain torch's numbers, skipped steps that change no bit, and no host reads."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from heads import CosFace, PartialFC
from tests.graph_safety import GraphSafety
from tests.models.small import SMALL, small
from tests.training.saved import save
from training.config import Config, ConfigError, DataConfig, OptimConfig, override
from training.saving import checkpoint
from training.step.optim import clip_gradients, create_optimizer, set_learning_rate

CPU = torch.device("cpu")
ANY = Config(data=DataConfig(train="x.rec"))
CONFIGS = {
    "sgd": OptimConfig(momentum=0.9, weight_decay=0.01),
    "adamw": OptimConfig(name="adamw", betas=(0.8, 0.99), weight_decay=0.1),
    "sgd, two groups": OptimConfig(weight_decay=0.01, decay_norm_and_bias=False),
    "adamw, two groups": OptimConfig(name="adamw", weight_decay=0.1, decay_norm_and_bias=False),
}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    # No bias before BatchNorm: its gradient would be rounding alone, which AdamW makes large.
    first = nn.Linear(4, 6, bias=False)
    return nn.Sequential(first, nn.BatchNorm1d(6), nn.PReLU(6), nn.Linear(6, 3))


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, *, start: int = 0
) -> None:
    """Steps whose batches and rates depend on their number alone."""
    for step in range(start, start + steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().sum().backward()
        set_learning_rate(optimizer, 0.01 / (step + 1))
        if hasattr(optimizer, "found_inf"):
            optimizer.found_inf = torch.zeros(())
        optimizer.step()


def skip(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """A step with gradients that must not count."""
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, float("nan"))
    set_learning_rate(optimizer, 0.5)
    optimizer.found_inf = torch.ones(())
    optimizer.step()


def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Parameters and optimizer state, as copies, in one order."""
    state = [optimizer.state[p][name] for p in model.parameters() for name in optimizer.state[p]]
    return [tensor.detach().clone() for tensor in (*model.parameters(), *state)]


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@every_config
def test_a_skipped_step_changes_no_bit_the_first_one_included(config):
    model, unskipped = network(), network()
    optimizer = create_optimizer(model.parameters(), config, CPU)
    reference = create_optimizer(unskipped.parameters(), config, CPU)
    before = everything(model, optimizer)
    skip(model, optimizer)
    assert_same(everything(model, optimizer), before)
    train(model, optimizer, 3)
    before = everything(model, optimizer)
    skip(model, optimizer)
    assert_same(everything(model, optimizer), before)
    train(model, optimizer, 2, start=3)
    train(unskipped, reference, 5)
    assert_same(everything(model, optimizer), everything(unskipped, reference))


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_steps_are_those_of_plain_torch(name):
    ours, theirs = network(), network()
    config = CONFIGS[name]
    if name == "sgd":
        reference = torch.optim.SGD(theirs.parameters(), 1.0, momentum=0.9, weight_decay=0.01)
    else:
        reference = torch.optim.AdamW(theirs.parameters(), betas=(0.8, 0.99), weight_decay=0.1)
    train(ours, create_optimizer(ours.parameters(), config, CPU), 5)
    train(theirs, reference, 5)
    for found, expected in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@every_config
def test_step_and_clipping_read_nothing_from_the_device(config):
    """A fused CPU kernel reads a rate and a flag in its own code, where only CPU tensors are; what
    surrounds it is the same on every device."""
    model = network()
    optimizer = create_optimizer(model.parameters(), config, CPU)
    model(torch.randn(8, 4)).sum().backward()
    with GraphSafety():
        norm = clip_gradients(model.parameters(), 1.0)
        optimizer.found_inf = (~norm.isfinite()).float()
        set_learning_rate(optimizer, 0.1)
        optimizer.step()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("name", SMALL)
def test_norms_activations_biases_and_positions_go_without_decay_when_asked(name, optimizer):
    """What is left are the weights of convolutions and products."""
    backbone, family = small(name).create(), small(name).family
    config = OptimConfig(name=optimizer, decay_norm_and_bias=False, weight_decay=0.1)
    found = create_optimizer(
        backbone.parameters(), config, CPU, undecayed=family.undecayed_in(backbone)
    )
    decay = {p: group["weight_decay"] for group in found.param_groups for p in group["params"]}
    weights = {m.weight for m in backbone.modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    assert decay == {
        p: 0.1 if p in weights else 0.0 for p in backbone.parameters() if p.requires_grad
    }
    assert set(decay.values()) == {0.0, 0.1}


def test_by_default_everything_decays_as_in_arcface_torch():
    model = network()
    model[0].weight.requires_grad_(False)
    groups = create_optimizer(model.parameters(), OptimConfig(), CPU).param_groups
    assert [group["weight_decay"] for group in groups] == [5e-4]
    assert groups[0]["params"] == [p for p in model.parameters() if p.requires_grad]


@every_config
def test_all_groups_share_one_rate(config):
    optimizer = create_optimizer(network().parameters(), config, CPU)
    lr = set_learning_rate(optimizer, 0.25)
    assert (lr.shape, lr.dtype, lr.item()) == ((), torch.float32, 0.25)
    assert all(group["lr"] is lr for group in optimizer.param_groups)


@pytest.mark.parametrize("max_norm", [0.5, 1e3, 0.0])
def test_clipping_scales_by_the_global_norm_and_returns_it(max_norm):
    parameters = [nn.Parameter(torch.zeros(3, 2)), nn.Parameter(torch.zeros(5))]
    unused = nn.Parameter(torch.zeros(1))
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    before = torch.cat([parameter.grad.flatten() for parameter in parameters])
    norm = clip_gradients(iter([*parameters, unused]), max_norm)
    torch.testing.assert_close(norm, before.norm())
    after = torch.cat([parameter.grad.flatten() for parameter in parameters])
    factor = min(1.0, max_norm / norm.item()) if max_norm else 1.0
    torch.testing.assert_close(after, before * factor)
    assert unused.grad is None


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_clipping_leaves_a_gradient_that_is_not_finite_as_it_is(bad):
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))]
    parameters[0].grad, parameters[1].grad = torch.tensor([30.0, 40.0]), torch.tensor([bad])
    assert not clip_gradients(parameters, 1.0).isfinite()
    assert parameters[0].grad.tolist() == [30.0, 40.0]
    torch.testing.assert_close(parameters[1].grad, torch.tensor([bad]), equal_nan=True)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("optim.name=lion", "optim.name.*lion"),
        ("optim.betas=[0.9,1]", r"optim\.betas\[1\]=1\.0: expected at least 0 and below 1"),
        ("optim.betas=[0.9]", r"optim\.betas.* length"),
        ("optim.backend=triton", "optim.backend.*triton"),
        ("optim.clip=-1", r"optim\.clip=-1\.0: expected at least 0"),
    ],
)
def test_bad_values_are_refused_with_what_is_allowed(change, complaint):
    with pytest.raises(ConfigError, match=complaint):
        override(ANY, [change])


def checkpointed(config: OptimConfig) -> SimpleNamespace:
    """What training.saving.checkpoint saves and loads."""
    model = network()
    return SimpleNamespace(
        backbone=model,
        optimizer=create_optimizer(model.parameters(), config, CPU),
        head=PartialFC(num_classes=5, embedding_dim=3, margin=CosFace(), device=CPU),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
    )


@every_config
def test_a_loaded_checkpoint_goes_on_bit_for_bit(config, world, tmp_path):
    whole, resumed = checkpointed(config), checkpointed(config)
    train(whole.backbone, whole.optimizer, 3)
    path = save(tmp_path, step=3, config=ANY, train_step=whole)
    assert checkpoint.load(path, train_step=resumed) == 3
    for run in (whole, resumed):
        train(run.backbone, run.optimizer, 2, start=3)
    assert_same(
        everything(resumed.backbone, resumed.optimizer),
        everything(whole.backbone, whole.optimizer),
    )


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_what_the_configuration_says_of_groups_wins_over_the_checkpoint(name, world, tmp_path):
    """One group is saved and two are loaded into, with another decay, momentum and betas."""
    saved = checkpointed(OptimConfig(name=name))
    train(saved.backbone, saved.optimizer, 2)
    path = save(tmp_path, step=2, config=ANY, train_step=saved)
    changed = OptimConfig(
        name=name, weight_decay=0.3, decay_norm_and_bias=False, momentum=0.5, betas=(0.5, 0.6)
    )
    loaded = checkpointed(changed)
    groups = copy.deepcopy([group | {"params": None} for group in loaded.optimizer.param_groups])
    checkpoint.load(path, train_step=loaded)
    assert [group | {"params": None} for group in loaded.optimizer.param_groups] == groups
    assert_same(
        everything(loaded.backbone, loaded.optimizer), everything(saved.backbone, saved.optimizer)
    )


def test_a_checkpoint_of_another_optimizer_is_refused(world, tmp_path):
    path = save(tmp_path, step=0, config=ANY, train_step=checkpointed(CONFIGS["sgd"]))
    with pytest.raises(checkpoint.CheckpointError, match=r"not fit this run: .*optimizer\.state"):
        checkpoint.load(path, train_step=checkpointed(CONFIGS["adamw"]))


@pytest.mark.gpu
@every_config
def test_a_gpu_is_not_waited_for_and_skips_as_well(config):
    device = torch.device("cuda")
    model = network().to(device)
    optimizer = create_optimizer(model.parameters(), config, device)
    before = everything(model, optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, float("nan"))
    torch.cuda.set_sync_debug_mode("error")
    try:
        norm = clip_gradients(model.parameters(), 1.0)
        optimizer.found_inf = (~norm.isfinite()).float()
        set_learning_rate(optimizer, 0.1)
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_same(everything(model, optimizer), before)
