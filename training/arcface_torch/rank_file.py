"""What arcface_torch saves of a rank in checkpoint_gpu_{r}.pt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models import Architecture
from training.arcface_torch.config_file import is_number
from training.arcface_torch.weights import ArcFaceTorchError, Optimization, trained

_KEYS = {
    "epoch",
    "global_step",
    "state_dict_backbone",
    "state_dict_softmax_fc",
    "state_optimizer",
}


def is_rank_file(content: Mapping[str, Any]) -> bool:
    """Whether a file holds what such a checkpoint does."""
    return content.keys() >= _KEYS


@dataclass(frozen=True)
class RankFile:
    """A rank's checkpoint.

    Attributes:
        epoch, step: done; steps of the schedule.
        backbone: its state dict, under any keys.
        centers: (rows, D), those of this rank.
        optimizer: the state of one of torch's, of the backbone's parameters and then the centers.
        scheduler: the state of its schedule; empty where it has none.
    """

    epoch: int
    step: int
    backbone: dict[str, Any]
    centers: Tensor
    optimizer: dict[str, Any]
    scheduler: dict[str, Any]

    @classmethod
    def of(cls, content: Mapping[str, Any], path: Path) -> RankFile:
        """Raises ArcFaceTorchError for what arcface_torch does not save there."""
        _require_kinds(content, path)
        head, scheduler = content["state_dict_softmax_fc"], content.get("state_lr_scheduler")
        if not isinstance(head.get("weight"), Tensor):
            keys = ", ".join(map(str, head)) or "nothing"
            raise ArcFaceTorchError(f"{path}: its head has {keys}: expected PartialFC's weight")
        return cls(
            epoch=content["epoch"],
            step=content["global_step"],
            backbone=content["state_dict_backbone"],
            centers=head["weight"],
            optimizer=content["state_optimizer"],
            scheduler=scheduler if isinstance(scheduler, dict) else {},
        )

    def center_momentum(self) -> Tensor | None:
        """Of all rows, of the last parameter of its optimizer; None where that has none such."""
        (last,) = self.optimizer["param_groups"][-1]["params"][-1:]
        momentum = self._buffer(last)
        # A version in between gave its optimizer a step's sampled rows, with no word of which.
        return momentum if momentum is not None and momentum.shape == self.centers.shape else None

    def backbone_momentum(self, architecture: Architecture) -> tuple[dict[str, Tensor] | None, str]:
        """By the names of trained parameters; or None, and why.

        The optimizer numbers them in the order of the module: that of the state dict is another
        where a sharded checkpoint was merged.
        """
        with torch.device("meta"):
            network = architecture.create()
        names = [name for name, _ in network.named_parameters()]
        numbers = self.optimizer["param_groups"][0]["params"]
        buffers = {
            name: buffer
            for name, number in zip(names, numbers)
            if (buffer := self._buffer(number)) is not None
        }
        expected = {name: p.shape for name, p in trained(network).items()}
        if len(names) == len(numbers) and expected == {n: b.shape for n, b in buffers.items()}:
            return buffers, ""
        return None, (
            f"of {len(expected)} parameters its optimizer has {len(buffers)} such buffers, "
            "expected SGD's of all"
        )

    def optimization(self) -> Optimization | None:
        """What optimizer and schedule say of themselves; None where it is not SGD."""
        first, last = self.optimizer["param_groups"][0], self.optimizer["param_groups"][-1]
        rates = self.scheduler.get("base_lrs")
        rate = rates[0] if isinstance(rates, list) and rates else first.get("initial_lr")
        values_found = {
            "rate": rate,
            "momentum": first.get("momentum"),
            "weight_decay": first.get("weight_decay"),
            "head_weight_decay": last.get("weight_decay"),
        }
        if not all(map(is_number, values_found.values())):
            return None
        way = {
            "power": self.scheduler.get("power"),
            "warmup_steps": self._of_schedule("warmup_iters", "warmup_steps"),
            "total_steps": self._of_schedule("total_iters", "max_steps"),
        }
        return Optimization(**values_found, **way if all(map(is_number, way.values())) else {})

    def _of_schedule(self, *names: str) -> Any:
        """A value that its two schedulers, of before and after April 2023, call differently."""
        return next((self.scheduler[name] for name in names if name in self.scheduler), None)

    def _buffer(self, number: int) -> Tensor | None:
        """SGD's momentum of a parameter, where it has any."""
        found = self.optimizer["state"].get(number, {}).get("momentum_buffer")
        return found if isinstance(found, Tensor) else None


def _require_kinds(content: Mapping[str, Any], path: Path) -> None:
    optimizer, head = content["state_optimizer"], content["state_dict_softmax_fc"]
    state, groups = ({}, [])
    if isinstance(optimizer, dict):
        state, groups = optimizer.get("state"), optimizer.get("param_groups")
    wrong = {
        "epoch": not isinstance(content["epoch"], int),
        "global_step": not isinstance(content["global_step"], int),
        "state_dict_backbone": not isinstance(content["state_dict_backbone"], dict),
        "state_dict_softmax_fc": not isinstance(head, dict),
        "state_optimizer": not (
            isinstance(state, dict)
            and all(isinstance(one, dict) for one in state.values())
            and isinstance(groups, list)
            and groups
            and all(_has_numbers(group) for group in groups)
        ),
    }
    if any(wrong.values()):
        keys = ", ".join(key for key, is_wrong in wrong.items() if is_wrong)
        raise ArcFaceTorchError(
            f"{path}: its {keys} are not what arcface_torch saves there: expected the file as its "
            "train_v2.py wrote it. Of another, name its backbone's state dict alone"
        )


def _has_numbers(group: Any) -> bool:
    """Whether it is a group of an optimizer, with its parameters' numbers."""
    numbers = group.get("params") if isinstance(group, dict) else None
    return isinstance(numbers, list) and bool(numbers) and all(isinstance(n, int) for n in numbers)
