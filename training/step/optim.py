"""The backbone's optimizer: fused kernels, one learning rate on the device, steps that can be
skipped there, and the clipping of gradients. Nothing is read back to the host."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from training.config import OptimConfig
from training.step.apex_optim import create_apex_optimizer

FACTOR = "rate_factor"  # of a group: what the rate of its parameters is multiplied by
_STATE = {"sgd": ("momentum_buffer",), "adamw": ("exp_avg", "exp_avg_sq")}


def create_optimizer(
    parameters: Iterable[nn.Parameter],
    config: OptimConfig,
    device: torch.device,
    *,
    undecayed: Iterable[nn.Parameter] = (),
    factors: Mapping[nn.Parameter, float] | None = None,
) -> torch.optim.Optimizer:
    """SGD, or AdamW (Loshchilov and Hutter, 2019, arXiv:1711.05101), for what requires a gradient.

    Args:
        undecayed: those of them that have several axes and no weight decay, where
            `config.decay_norm_and_bias` is false.
        factors: on the rate, of those whose rate is another.

    Set its `found_inf` before every step, a 0-d float32 tensor: where it is 1 the step changes
    neither parameters nor state, the very first one included.

    Raises ConfigError where `config.backend` is "apex" and NVIDIA's Apex is not there, or cannot
    do this.
    """
    groups = _parameter_groups(parameters, config, undecayed, factors or {})
    lr = torch.zeros((), device=device)
    if config.backend == "apex":
        optimizer = create_apex_optimizer(groups, config, device)
    elif config.name == "adamw":
        optimizer = torch.optim.AdamW(
            groups, lr=lr, betas=config.betas, fused=True, capturable=device.type != "cpu"
        )
    else:
        optimizer = torch.optim.SGD(groups, lr=lr, momentum=config.momentum, fused=True)
    for group in optimizer.param_groups:
        if group[FACTOR] != 1 and isinstance(group["lr"], Tensor):
            group["lr"] = torch.zeros_like(group["lr"])
    _allocate_state(optimizer, config)
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> Tensor:
    """Set the rate, which each group has times its factor; returns it as a 0-d float32 tensor on
    the parameters' device, the same one each time where the groups' rates are tensors."""
    rate = optimizer.defaults["lr"]
    if not isinstance(rate, Tensor):
        rate = torch.zeros((), device=optimizer.param_groups[0]["params"][0].device)
    rate.fill_(lr)
    for group in optimizer.param_groups:
        factor = group.get(FACTOR, 1.0)
        if not isinstance(group["lr"], Tensor):
            group["lr"] = lr * factor
        elif group["lr"] is not rate:
            group["lr"].fill_(lr * factor)
    return rate


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale gradients down to a global L2 norm of `max_norm`; 0 leaves them alone.

    Returns the norm before that, a 0-d tensor. Where it is not finite the gradients stay as they
    are: scaled by 0 or NaN they would no longer tell which of them was bad.
    """
    parameters = list(parameters)
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if max_norm:
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm.where(norm.isfinite(), 0.0))
    return norm


def _parameter_groups(
    parameters: Iterable[nn.Parameter],
    config: OptimConfig,
    undecayed: Iterable[nn.Parameter],
    factors: Mapping[nn.Parameter, float],
) -> list[dict[str, Any]]:
    """One group for each weight decay and factor on the rate; those with decay come first."""
    # Weights of convolutions and products have axes for input and output; the scales, shifts,
    # slopes and biases of normalization, PReLU and layers have one axis at most.
    without = set(undecayed)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.requires_grad:
            decays = config.decay_norm_and_bias or (parameter.ndim > 1 and parameter not in without)
            decay = config.weight_decay if decays else 0.0
            groups.setdefault((decay, factors.get(parameter, 1.0)), []).append(parameter)
    return [
        {"params": members, "weight_decay": decay, FACTOR: factor}
        for (decay, factor), members in sorted(groups.items(), key=lambda group: -group[0][0])
    ]


def _allocate_state(optimizer: torch.optim.Optimizer, config: OptimConfig) -> None:
    """Zeros in place of what a first step would allocate.

    Fused SGD leaves the buffers of a skipped first step uninitialized; and before its first step a
    checkpoint would call for one.
    """
    if config.name == "sgd" and not config.momentum:
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            if config.name == "adamw":
                state["step"] = torch.zeros((), device=parameter.device)
            for name in _STATE[config.name]:
                state[name] = torch.zeros_like(parameter)
