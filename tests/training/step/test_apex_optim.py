"""NVIDIA Apex's optimizers, imitated on the CPU: which they are, and that they skip as torch's do.

The imitations take, keep and ignore what the real ones do: FusedSGD a float as its rate, FusedAdam
a tensor and a gradient scaler; a flag in place of `found_inf`; one count of steps a group.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from tests.graph_safety import GraphSafety
from tests.training.step.test_optim import CPU, assert_same, everything, network, skip, train
from training.config import ConfigError, OptimConfig
from training.step.optim import create_optimizer, set_learning_rate

CONFIGS = {
    "sgd": OptimConfig(backend="apex", weight_decay=0.01),
    "sgd, two groups": OptimConfig(backend="apex", weight_decay=0.01, decay_norm_and_bias=False),
    "sgd, no momentum": OptimConfig(backend="apex", momentum=0.0),
    "adamw": OptimConfig(backend="apex", name="adamw", weight_decay=0.1),
    "adamw, two groups": OptimConfig(
        backend="apex", name="adamw", weight_decay=0.1, decay_norm_and_bias=False
    ),
}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


class FusedSGD(Optimizer):
    def __init__(self, groups, lr, momentum):
        super().__init__(groups, {"lr": lr, "momentum": momentum})
        self._dummy_overflow_buf = torch.zeros(1, dtype=torch.int32)

    def step(self):
        for group in self.param_groups:
            assert isinstance(group["lr"], float), "converting a tensor would wait for the device"
            for p in group["params"]:
                state = self.state[p]
                first = "momentum_buffer" not in state
                momentum = state.setdefault("momentum_buffer", torch.zeros_like(p))
                if self._dummy_overflow_buf:
                    continue
                gradient = p.grad + group["weight_decay"] * p.detach()
                if group["momentum"]:
                    momentum.mul_(0 if first else group["momentum"]).add_(gradient)
                    gradient = momentum
                p.data.sub_(group["lr"] * gradient)


class FusedAdam(Optimizer):
    def __init__(self, groups, lr, betas, capturable):
        assert capturable, "the kernels of the other mode do not look at the flag"
        super().__init__(groups, {"lr": torch.tensor(lr), "betas": betas})
        self._dummy_overflow_buf = torch.zeros(1, dtype=torch.int32)

    def step(self, grad_scaler):
        flag = self._dummy_overflow_buf
        for group in self.param_groups:
            group["step"] += (flag != 1).to(torch.int)  # what the step before has found
            flag.copy_(grad_scaler._check_inf_per_device(self)[CPU])
            scale = grad_scaler._get_scale_async()
            assert scale.shape == group["step"].shape == (1,)
            if flag == 1:
                continue
            beta, beta2 = group["betas"]
            for p in group["params"]:
                gradient, state = p.grad / scale, self.state[p]
                state["exp_avg"].lerp_(gradient, 1 - beta)
                state["exp_avg_sq"].lerp_(gradient.square(), 1 - beta2)
                mean = state["exp_avg"] / (1 - beta ** group["step"])
                square = state["exp_avg_sq"] / (1 - beta2 ** group["step"])
                update = mean / (square.sqrt() + 1e-8) + group["weight_decay"] * p.detach()
                p.data.sub_(group["lr"] * update)


def install(monkeypatch: pytest.MonkeyPatch, **offers: object) -> None:
    """A module apex that has apex.optimizers with what is given."""
    optimizers = ModuleType("apex.optimizers")
    vars(optimizers).update(offers)
    monkeypatch.setitem(sys.modules, "apex", ModuleType("apex"))
    monkeypatch.setitem(sys.modules, "apex.optimizers", optimizers)


@pytest.fixture
def apex(monkeypatch) -> Iterator[None]:
    install(monkeypatch, FusedSGD=FusedSGD, FusedAdam=FusedAdam)


@pytest.mark.usefixtures("apex")
@every_config
def test_steps_and_state_are_those_of_torchs_kernels_skipped_ones_included(config):
    """Skipped at the very first, twice in a row, and before the last."""
    ours, theirs = network(), network()
    optimizer = create_optimizer(ours.parameters(), config, CPU)
    reference = create_optimizer(
        theirs.parameters(), OptimConfig(**vars(config) | {"backend": "torch"}), CPU
    )
    skip(ours, optimizer)
    train(ours, optimizer, 3)
    before = everything(ours, optimizer)
    skip(ours, optimizer)
    skip(ours, optimizer)
    assert_same(everything(ours, optimizer), before)
    train(ours, optimizer, 2, start=3)
    train(theirs, reference, 5)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)
        for name, expected in reference.state[q].items():
            torch.testing.assert_close(optimizer.state[p][name], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("apex")
@every_config
def test_state_moves_between_the_backends(config):
    """As through a checkpoint, whose groups are the configuration's."""
    model, other = network(), network()
    optimizer = create_optimizer(model.parameters(), config, CPU)
    train(model, optimizer, 2)
    other.load_state_dict(model.state_dict())
    resumed = create_optimizer(
        other.parameters(), OptimConfig(**vars(config) | {"backend": "torch"}), CPU
    )
    groups = resumed.state_dict()["param_groups"]
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()) | {"param_groups": groups})
    train(model, optimizer, 2, start=2)
    train(other, resumed, 2, start=2)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("apex")
@every_config
def test_the_rate_is_returned_as_a_tensor_whatever_apex_takes(config):
    optimizer = create_optimizer(network().parameters(), config, CPU)
    with GraphSafety():
        lr = set_learning_rate(optimizer, 0.25)
    assert (lr.shape, lr.dtype, lr.item()) == ((), torch.float32, 0.25)
    assert all(group["lr"] == 0.25 for group in optimizer.param_groups)


def refuses(complaint: str, name: str = "sgd") -> None:
    with pytest.raises(ConfigError, match=complaint) as refusal:
        create_optimizer(
            [nn.Parameter(torch.zeros(2, 2))], OptimConfig(backend="apex", name=name), CPU
        )
    assert "optim.backend=torch" in str(refusal.value)


def test_without_apex_it_says_where_it_comes_from(monkeypatch):
    for name in ("apex", "apex.optimizers"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "meta_path", [])  # nothing can be found
    refuses(r"apex is not installed.*do not install it: build NVIDIA's .*github\.com/NVIDIA/apex")


def test_the_package_that_is_called_apex_is_not_mistaken_for_nvidias(monkeypatch):
    monkeypatch.setitem(sys.modules, "apex", ModuleType("apex"))
    refuses(r"not NVIDIA's Apex .*apex\.optimizers.*web toolkit, another package")
    install(monkeypatch)
    refuses("it has no FusedSGD and FusedAdam")


def test_an_apex_that_cannot_skip_or_run_is_refused(monkeypatch):
    class Old(FusedAdam):
        def __init__(self, groups, lr, betas):
            super().__init__(groups, lr, betas, capturable=True)

    def unbuilt(groups, lr, momentum):
        raise RuntimeError("requires extensions")

    class Blind(FusedSGD):
        def __init__(self, groups, lr, momentum):
            super().__init__(groups, lr, momentum)
            del self._dummy_overflow_buf

    install(monkeypatch, FusedSGD=unbuilt, FusedAdam=Old)
    refuses(r"cannot be used here \(requires extensions\)")
    refuses("unexpected keyword argument 'capturable'", name="adamw")
    install(monkeypatch, FusedSGD=Blind, FusedAdam=FusedAdam)
    refuses("_dummy_overflow_buf")


def test_apex_for_another_device_is_refused(monkeypatch):
    class Elsewhere(FusedSGD):
        def __init__(self, groups, lr, momentum):
            super().__init__(groups, lr, momentum)
            self._dummy_overflow_buf = self._dummy_overflow_buf.to("meta")

    install(monkeypatch, FusedSGD=Elsewhere, FusedAdam=FusedAdam)
    refuses("expected parameters on meta, where Apex runs, found them on cpu")
