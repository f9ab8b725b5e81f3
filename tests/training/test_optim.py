"""Schedule and optimizer: the rate at every step, and a skipped step that changes nothing."""

from itertools import pairwise

import pytest
import torch

from training.config import OptimConfig
from training.optim import create_optimizer, create_schedule, set_learning_rate

CPU = torch.device("cpu")


def schedule(**changes):
    settings = {"lr": 0.1, "warmup_epochs": 2, "power": 2.0} | changes
    return create_schedule(
        OptimConfig(**settings), global_batch=1024, epochs=10, steps_per_epoch=100
    )


def test_the_peak_follows_the_global_batch():
    assert schedule().peak == pytest.approx(0.2)


def test_warm_up_rises_evenly_from_a_small_rate_and_decay_ends_at_zero():
    rate = schedule()
    warm = [rate(step) for step in range(200)]
    assert warm[0] == pytest.approx(0.2 / 201)
    assert all(b - a == pytest.approx(0.2 / 201) for a, b in pairwise(warm))
    assert rate(200) == pytest.approx(0.2)
    decay = [rate(step) for step in range(200, 1000)]
    assert decay == sorted(decay, reverse=True)
    assert rate(600) == pytest.approx(0.2 * 0.5**2)
    assert 0 < rate(999) < 1e-6
    assert rate(1000) == 0


def test_without_warm_up_the_first_step_has_the_full_rate():
    assert schedule(warmup_epochs=0)(0) == pytest.approx(0.2)


def test_a_step_skipped_at_the_very_start_leaves_weights_and_momentum_alone():
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3)
    optimizer = create_optimizer(model.parameters(), OptimConfig(weight_decay=0.1), CPU)
    set_learning_rate(optimizer, 0.5)
    before = model.weight.clone()
    model(torch.full((2, 4), float("inf"))).sum().backward()
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert torch.equal(model.weight, before)
    assert torch.equal(optimizer.state[model.weight]["momentum_buffer"], torch.zeros(3, 4))


def test_steps_are_those_of_plain_torch_sgd():
    torch.manual_seed(0)
    ours, theirs = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
    theirs.load_state_dict(ours.state_dict())
    config = OptimConfig(momentum=0.9, weight_decay=0.01)
    optimizer = create_optimizer(ours.parameters(), config, CPU)
    reference = torch.optim.SGD(theirs.parameters(), lr=1.0, momentum=0.9, weight_decay=0.01)
    for step in range(5):
        x = torch.randn(6, 4)
        for model, sgd in ((ours, optimizer), (theirs, reference)):
            sgd.zero_grad()
            model(x).square().sum().backward()
        set_learning_rate(optimizer, 0.1 / (step + 1))
        reference.param_groups[0]["lr"] = 0.1 / (step + 1)
        optimizer.found_inf = torch.zeros(())
        optimizer.step()
        reference.step()
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-6, atol=1e-7)
