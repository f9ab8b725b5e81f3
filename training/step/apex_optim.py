"""NVIDIA Apex's FusedSGD and FusedAdam, for those who have built them (optim.backend=apex).

They skip a step by a flag of their own, and FusedAdam counts steps where no checkpoint looks: hooks
around `step` make both behave as torch's fused optimizers, so that a checkpoint of one fits the
other.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from training.config import ConfigError, OptimConfig

_REMEDY = (
    "build NVIDIA's from source, https://github.com/NVIDIA/apex, with its C++ and CUDA extensions, "
    "or set optim.backend=torch, whose kernels are fused as well"
)


def create_apex_optimizer(
    groups: list[dict[str, Any]], config: OptimConfig, device: torch.device
) -> Optimizer:
    """FusedSGD, with a float as its rate, or FusedAdam, with a 0-d tensor; both heed `found_inf`.

    `groups` have "params" and "weight_decay". Raises ConfigError where Apex is missing, another
    package, too old, built without its kernels, or for another device.
    """
    optimizers = _apex_optimizers()
    try:
        if config.name == "sgd":
            optimizer = optimizers.FusedSGD(groups, lr=0.0, momentum=config.momentum)
        else:
            optimizer = optimizers.FusedAdam(groups, lr=0.0, betas=config.betas, capturable=True)
        flag = optimizer._dummy_overflow_buf
    except (RuntimeError, ImportError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"optim.backend='apex': Apex cannot be used here ({error}); {_REMEDY}"
        ) from error
    if flag.device.type != device.type:
        raise ConfigError(
            f"optim.backend='apex': expected parameters on {flag.device.type}, where Apex runs, "
            f"found them on {device.type}; set optim.backend=torch"
        )
    optimizer.found_inf = torch.zeros((), device=device)
    if config.name == "sgd":
        optimizer.register_step_pre_hook(_raise_flag)
    else:
        optimizer.defaults["lr"] = lr = torch.zeros((), device=device)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.register_step_pre_hook(_before_adam)
        optimizer.register_step_post_hook(_after_adam)
    return optimizer


def _apex_optimizers() -> ModuleType:
    """NVIDIA's apex.optimizers; raises ConfigError where it is missing or someone else's."""
    try:
        optimizers = importlib.import_module("apex.optimizers")
    except ImportError as error:
        found = "not installed" if error.name == "apex" else f"not NVIDIA's Apex ({error})"
    else:
        if hasattr(optimizers, "FusedSGD") and hasattr(optimizers, "FusedAdam"):
            return optimizers
        found = "not NVIDIA's Apex (it has no FusedSGD and FusedAdam)"
    raise ConfigError(
        f"optim.backend='apex': the module apex is {found}. What the package index has under that "
        f"name is a web toolkit, another package, so do not install it: {_REMEDY}"
    )


def _raise_flag(optimizer: Any, args: tuple, kwargs: dict[str, Any]) -> None:
    """FusedSGD's kernels return at once where this is not 0."""
    optimizer._dummy_overflow_buf.copy_(optimizer.found_inf)


class _Scaler:
    """`found_inf` in the only form that FusedAdam takes it, a gradient scaler whose scale is 1."""

    def __init__(self, found_inf: Tensor) -> None:
        self._found_inf = found_inf

    def _check_inf_per_device(self, optimizer: Optimizer) -> dict[torch.device, Tensor]:
        return {optimizer.param_groups[0]["params"][0].device: self._found_inf}

    def _get_scale_async(self) -> Tensor:
        return torch.ones(1, device=self._found_inf.device)


def _before_adam(
    optimizer: Any, args: tuple, kwargs: dict[str, Any]
) -> tuple[tuple, dict[str, Any]]:
    """Lend each group a count of steps, (1,) int32, which FusedAdam raises before it looks."""
    for group in optimizer.param_groups:
        steps = optimizer.state[group["params"][0]]["step"]
        group["step"] = steps.to(torch.int32).reshape(1)
    return args, {**kwargs, "grad_scaler": _Scaler(optimizer.found_inf)}


def _after_adam(optimizer: Any, args: tuple, kwargs: dict[str, Any]) -> None:
    """Count the step where torch does, unless it was skipped, and lower the flag."""
    counts = []
    for group in optimizer.param_groups:
        del group["step"]
        counts += [optimizer.state[parameter]["step"] for parameter in group["params"]]
    torch._foreach_add_(counts, 1 - optimizer.found_inf)
    optimizer._dummy_overflow_buf.zero_()
