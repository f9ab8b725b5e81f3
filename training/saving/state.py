"""What of a run goes into a checkpoint, as tensors: taken out, copied to the host, put back.

Backbone and optimizer are the same on every rank and stored once; the head's rows are DTensors
split as Shard(0), so another number of ranks finds its own rows in the same files. There is no
state of random generators: every draw of a run follows from its seed and the step.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from heads import PartialFC
from heads.expectations import EXPECTATIONS
from heads.neighbors.table import TABLES
from heads.rows.buffers import ROWS
from heads.shard_state import SHARD_ENTRIES
from training.saving.names import BACKBONE, HEAD, OPTIMIZER, SCALER
from training.step.backbone import unwrapped
from training.step.train_step import TrainStep

State = dict[str, Any]  # nested; leaves are tensors and plain values

SHARDED = (*ROWS, *TABLES, EXPECTATIONS)  # of the head: a row a class, split over the ranks


def read_state(train_step: TrainStep) -> State:
    """The tensors themselves, the head's of this rank alone.

    Rates, momentum, decay and which parameter has which are the configuration's: not in it.
    """
    backbone, optimizer = get_state_dict(unwrapped(train_step.backbone), train_step.optimizer)
    head = train_step.head.state_dict()
    state = {
        BACKBONE: backbone,
        OPTIMIZER: {"state": optimizer["state"]},
        HEAD: {name: value for name, value in head.items() if name not in SHARD_ENTRIES},
    }
    if train_step.scaler.is_enabled():
        state[SCALER] = train_step.scaler.state_dict()
    return state


def put_state(state: State, train_step: TrainStep) -> None:
    """Hand over what was loaded into `read_state`'s tensors, where they are not the step's own."""
    _, optimizer = get_state_dict(unwrapped(train_step.backbone), train_step.optimizer)
    set_state_dict(
        unwrapped(train_step.backbone),
        train_step.optimizer,
        model_state_dict=state[BACKBONE],
        optim_state_dict=state[OPTIMIZER] | {"param_groups": optimizer["param_groups"]},
    )
    train_step.head.forget_step()
    if SCALER in state:
        train_step.scaler.load_state_dict(state[SCALER])


def rank_mesh(device_type: str) -> DeviceMesh:
    """All ranks in a row; call it on every rank."""
    return init_device_mesh(device_type, (dist.get_world_size(),))


def share_head(state: State, head: PartialFC, mesh: DeviceMesh) -> State:
    """The same state, with this rank's rows of the head as its part of all ranks' rows."""
    rows = {
        name: share_rows(tensor, head.num_classes, mesh)
        for name, tensor in state[HEAD].items()
        if name in SHARDED
    }
    return state | {HEAD: state[HEAD] | rows}


def share_rows(own: Tensor, count: int, mesh: DeviceMesh) -> DTensor:
    """(count, W): rows of all ranks, of which `own` are this rank's."""
    shape = torch.Size((count, own.shape[1]))
    return DTensor.from_local(own, mesh, [Shard(0)], shape=shape, stride=(shape[1], 1))


class HostCopy:
    """Copies states to the host, into the same memory every time; pinned beside accelerators."""

    def __init__(self) -> None:
        self._memory: dict[tuple[str, ...], Tensor] = {}

    def __call__(self, state: State) -> State:
        """A copy that stays as it is until the next; returns when it is whole."""
        self._devices: set[torch.device] = set()
        copied = self._copy(state, ())
        for device in self._devices:
            torch.get_device_module(device).synchronize(device)
        return copied

    def _copy(self, value: Any, path: tuple[str, ...]) -> Any:
        if isinstance(value, dict):
            return {key: self._copy(inner, (*path, key)) for key, inner in value.items()}
        if not isinstance(value, Tensor):
            return copy.deepcopy(value)
        pinned = value.device.type != "cpu"
        if pinned:
            self._devices.add(value.device)
        if path not in self._memory:
            self._memory[path] = torch.empty_like(value, device="cpu", pin_memory=pinned)
        return self._memory[path].copy_(value, non_blocking=pinned)
