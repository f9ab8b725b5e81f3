"""Checkpoints through torch.distributed.checkpoint: complete or not there, at any world size.

Backbone and optimizer are the same on every rank and stored once; the head's rows are DTensors
split as Shard(0), so another number of ranks finds its own rows in the same files.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from heads import PartialFC
from training.config import Config
from training.step import TrainStep

KEPT = 2  # the newest checkpoints of a run; older ones are removed once a new one is complete

_SHARDED = ("centers", "velocity")


class CheckpointError(ValueError):
    """A checkpoint that does not fit the run: says which, what differs and how to mend it."""


def checkpoints(output: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return sorted((output / "checkpoints").glob("step_*"))


def newest(output: Path) -> Path | None:
    """The checkpoint to go on from, if there is one."""
    return next(reversed(checkpoints(output)), None)


def save(output: Path, *, step: int, config: Config, train_step: TrainStep) -> Path:
    """Write a checkpoint of all ranks; call it on every rank. Returns its folder."""
    final = output / "checkpoints" / f"step_{step:09d}"
    partial = final.with_name(f"partial_{final.name}")
    main = dist.get_rank() == 0
    if main and partial.exists():
        shutil.rmtree(partial)
    dist.barrier()
    state = _state(train_step)
    state["step"] = step
    dcp.save(state, checkpoint_id=str(partial))
    if main:
        (partial / "config.json").write_text(json.dumps(config.as_dict(), indent=2))
        if final.exists():
            shutil.rmtree(final)
        partial.rename(final)
        for old in checkpoints(output)[:-KEPT]:
            # Renamed first: what is half removed must not look complete.
            shutil.rmtree(old.rename(old.with_name(f"partial_{old.name}")))
    dist.barrier()
    return final


def load(path: Path, *, train_step: TrainStep) -> int:
    """Restore a checkpoint into a step of any world size; returns the step to go on from.

    Raises CheckpointError when shapes or names do not fit.
    """
    state = _state(train_step)
    state["step"] = 0
    # Rates, momentum, decay and which parameter has which are the configuration's, which may differ
    # from the one that was saved with.
    groups = state["optimizer"].pop("param_groups")
    saved = dcp.FileSystemReader(str(path)).read_metadata().state_dict_metadata
    if not any(key.startswith("scaler.") for key in saved):
        state.pop("scaler", None)  # the run so far needed no loss scaling
    try:
        dcp.load(state, checkpoint_id=str(path))
    except CheckpointException as error:
        causes = sorted({str(cause) for cause, _ in error.failures.values()})
        raise CheckpointError(
            f"{path} does not fit this run: {'; '.join(causes)}. Choose another run.output, or "
            "restore the configuration that it was saved with"
        ) from error
    set_state_dict(
        unwrapped(train_step.backbone),
        train_step.optimizer,
        model_state_dict=state["backbone"],
        optim_state_dict=state["optimizer"] | {"param_groups": groups},
    )
    if "scaler" in state:
        train_step.scaler.load_state_dict(state["scaler"])
    return state["step"]


def claim(output: Path, config: Config, *, facts: dict[str, Any]) -> None:
    """Make `output` this run's folder; raise CheckpointError when it is anything else's.

    `facts` are what identifies the run: model, number of classes, dataset. They are written down
    at first.
    """
    if output.exists() and not output.is_dir():
        raise CheckpointError(f"run.output={output} is a file: choose a folder")
    output.mkdir(parents=True, exist_ok=True)
    path = output / "run.json"
    facts = json.loads(json.dumps(facts))
    if not path.exists():
        there = sorted(e.name for e in output.iterdir() if e.name != "run.unfinished")
        if there:
            names = ", ".join(there[:4])
            raise CheckpointError(
                f"run.output={output} is not empty ({names}) and holds no run: choose another "
                "folder, so that nothing in it is lost"
            )
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(facts, indent=2))
        unfinished.replace(path)
        return
    held = json.loads(path.read_text())
    differing = [key for key in facts if held.get(key) != facts[key]]
    if differing:
        key = differing[0]
        raise CheckpointError(
            f"run.output={output} holds another run: its {key} is {held.get(key)!r}, this one's is "
            f"{facts[key]!r}. Choose another run.output, or restore that configuration to go on"
        )
    if config.run.resume == "never":
        raise CheckpointError(
            f"run.output={output} already holds this run and run.resume=never: choose another "
            "run.output, or run.resume=auto to go on"
        )


def average_statistics(backbone: nn.Module) -> None:
    """Average BatchNorm's running statistics over the ranks: each has only seen its own."""
    if dist.get_world_size() == 1:
        return
    for buffer in backbone.buffers():
        if buffer.is_floating_point():
            dist.all_reduce(buffer)
            buffer /= dist.get_world_size()


def unwrapped(backbone: nn.Module) -> nn.Module:
    """The network itself, without DistributedDataParallel around it."""
    return getattr(backbone, "module", backbone)


def _state(train_step: TrainStep) -> dict[str, Any]:
    """Everything a run needs, as tensors that loading fills in place."""
    backbone, optimizer = get_state_dict(unwrapped(train_step.backbone), train_step.optimizer)
    state = {
        "backbone": backbone,
        "optimizer": optimizer,
        "head": _head_state(train_step.head),
    }
    if train_step.scaler.is_enabled():
        state["scaler"] = train_step.scaler.state_dict()
    return state


def _head_state(head: PartialFC) -> dict[str, torch.Tensor]:
    mesh = init_device_mesh(head.centers.device.type, (dist.get_world_size(),))
    width = head.centers.shape[1]
    state = dict(head.state_dict())
    for name in _SHARDED:
        state[name] = DTensor.from_local(
            state[name],
            mesh,
            [Shard(0)],
            shape=torch.Size((head.num_classes, width)),
            stride=(width, 1),
        )
    return state
