"""What of the network learns and how fast, by patterns of its parameters' names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.lora import FACTORS, add_low_rank, layers_for_low_rank
from training.config import Config, ConfigError, OptimConfig


def create_network(config: Config) -> nn.Module:
    """The backbone, freshly initialized, with the low-rank updates that model.lora_rank adds.

    Raises ConfigError for a pattern of model.lora_layers that fits none of the layers that can
    have some.
    """
    network, model = config.architecture.create(), config.model
    if model.lora_rank:
        there = layers_for_low_rank(network)
        setting = f"model.lora_layers={list(model.lora_layers)}"
        chosen = {
            name
            for pattern in model.lora_layers
            for name in _fitting(pattern, there, setting=setting, what="layer that can have one")
        }
        layers = [name for name in there if name in chosen]
        add_low_rank(network, layers, rank=model.lora_rank, scale=model.lora_scale)
    return network


def freeze(network: nn.Module, config: Config) -> None:
    """Let only what is asked for learn; in place, on a network of `create_network` in train mode.

    That is what optim.freeze does not name, and with model.lora_rank the updates alone.

    A frozen parameter has no gradient, so none of what follows from one: no state of an optimizer,
    no decay, nothing that ranks average. A BatchNorm whose parameters are all frozen normalizes by
    its running statistics, which stay: else the layers that it belongs to would change all the
    same. With optim.freeze_bn every one does.

    Raises ConfigError for a pattern that fits no parameter, and where none is left to learn.
    """
    optim, lora = config.optim, config.model.lora_rank > 0
    setting = f"optim.freeze={list(optim.freeze)}"
    names = [name for name, _ in network.named_parameters()]
    frozen = {n for pattern in optim.freeze for n in _fitting(pattern, names, setting=setting)}
    for name, parameter in network.named_parameters():
        if name in frozen or (lora and name.rpartition(".")[2] not in FACTORS):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ConfigError(
            f"{setting}: expected some parameter of the network that learns, found none left. To "
            "train the centers alone set optim.freeze_epochs to run.epochs instead"
        )
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            own = list(module.parameters()) if frozen else []
            all_frozen = own and not any(one.requires_grad for one in own)
            if optim.freeze_bn or lora or all_frozen:
                module.eval()


def rate_factors(network: nn.Module, config: OptimConfig) -> dict[nn.Parameter, float]:
    """The factor on the learning rate of each parameter that `config.rates` names.

    Raises ConfigError for a pattern that fits no parameter, and for two that fit the same one.
    """
    parameters, setting = dict(network.named_parameters()), f"optim.rates={config.rates}"
    chosen: dict[str, str] = {}
    for pattern in config.rates:
        for name in _fitting(pattern, parameters, setting=setting):
            if name in chosen:
                raise ConfigError(
                    f"{setting}: {name} fits {chosen[name]!r} and {pattern!r}, expected one "
                    "pattern for each parameter. Make one of them narrower"
                )
            chosen[name] = pattern
    return {parameters[name]: config.rates[pattern] for name, pattern in chosen.items()}


def describe_learning(network: nn.Module, config: Config) -> str:
    """How many parameters learn, for the log."""
    parameters = list(network.parameters())
    learning = sum(p.numel() for p in parameters if p.requires_grad) / 1e6
    parts = [f"{learning:.2f} M parameters"]
    if config.optim.freeze or config.model.lora_rank:
        parts = [f"{learning:.2f} of {sum(p.numel() for p in parameters) / 1e6:.2f} M parameters"]
    updated = sum(name.endswith(f".{FACTORS[0]}") for name, _ in network.named_parameters())
    if updated:
        parts.append(f"low-rank updates of {updated} layers alone learn")
    fixed = [m for m in network.modules() if isinstance(m, _BatchNorm) and not m.training]
    if fixed:
        parts.append(f"statistics of {len(fixed)} BatchNorms stay as they are")
    return ", ".join(parts)


def _fitting(
    pattern: str, names: Iterable[str], *, setting: str, what: str = "parameter of the network"
) -> list[str]:
    """The names that a pattern fits, some at least."""
    names = list(names)
    found = [name for name in names if fnmatchcase(name, pattern)]
    if not found:
        raise ConfigError(
            f"{setting}: {pattern!r} fits no {what}. Near are "
            f"{', '.join(_near(pattern, names))}; * stands for any letters, dots among them"
        )
    return found


def _near(pattern: str, names: Sequence[str]) -> list[str]:
    """Names, or patterns for all that begins alike, that are written much as `pattern`."""
    parts = [name.split(".") for name in names]
    groups = [".".join([*p[:depth], "*"]) for p in parts for depth in range(1, len(p))]
    there = list(dict.fromkeys([*groups, *names]))
    return get_close_matches(pattern, there, n=3, cutoff=0.3) or there[:3]
