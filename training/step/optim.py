"""The backbone's optimizer: fused kernels, one learning rate on the device, steps that can be
skipped there, and the clipping of gradients. Nothing is read back to the host."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from training.config import OptimConfig
from training.step.apex_optim import create_apex_optimizer

_STATE = {"sgd": ("momentum_buffer",), "adamw": ("exp_avg", "exp_avg_sq")}


def create_optimizer(
    parameters: Iterable[nn.Parameter],
    config: OptimConfig,
    device: torch.device,
    *,
    undecayed: Iterable[nn.Parameter] = (),
) -> torch.optim.Optimizer:
    """SGD, or AdamW (Loshchilov and Hutter, 2019, arXiv:1711.05101), for what requires a gradient.

    Args:
        undecayed: those of them that have several axes and no weight decay, where
            `config.decay_norm_and_bias` is false.

    Set its `found_inf` before every step, a 0-d float32 tensor: where it is 1 the step changes
    neither parameters nor state, the very first one included.

    Raises ConfigError where `config.backend` is "apex" and NVIDIA's Apex is not there, or cannot
    do this.
    """
    groups = _parameter_groups(parameters, config, undecayed)
    lr = torch.zeros((), device=device)
    if config.backend == "apex":
        optimizer = create_apex_optimizer(groups, config, device)
    elif config.name == "adamw":
        optimizer = torch.optim.AdamW(
            groups, lr=lr, betas=config.betas, fused=True, capturable=device.type != "cpu"
        )
    else:
        optimizer = torch.optim.SGD(groups, lr=lr, momentum=config.momentum, fused=True)
    _allocate_state(optimizer, config)
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> Tensor:
    """Set the rate of all groups; returns it as a 0-d float32 tensor on the parameters' device."""
    first = optimizer.param_groups[0]
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr
    if isinstance(first["lr"], Tensor):
        return first["lr"]
    return torch.full((), lr, device=first["params"][0].device)


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
    parameters: Iterable[nn.Parameter], config: OptimConfig, undecayed: Iterable[nn.Parameter]
) -> list[dict[str, Any]]:
    """One group, or those with weight decay and those without, each with its `weight_decay`."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if config.decay_norm_and_bias:
        return [{"params": trained, "weight_decay": config.weight_decay}]
    # Weights of convolutions and products have axes for input and output; the scales, shifts,
    # slopes and biases of normalization, PReLU and layers have one axis at most.
    without = {id(parameter) for parameter in undecayed}
    without |= {id(parameter) for parameter in trained if parameter.ndim <= 1}
    weights = [parameter for parameter in trained if id(parameter) not in without]
    others = [parameter for parameter in trained if id(parameter) in without]
    groups = [
        {"params": weights, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


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
