"""The backbone as a run trains it: on its device, compiled if asked for, averaged over ranks."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from models.batch_norm import fuse_batch_norm
from models.checkpointing import checkpoint_blocks
from models.kernels.batch_norm import obstacle
from models.winograd import use_winograd
from training.config import Config, ConfigError
from training.distributed import World
from training.step.compile import compile_backbone
from training.step.learning import create_network, describe_learning, freeze
from training.step.precision import Precision
from training.step.streams import aside

# Gradients travel in about as many pieces, the first of them while most are still computed.
_BUCKETS = 8
_BUCKET_MB = (1.0, 25.0)  # smaller ones cost latency, larger ones overlap with too little


def create_backbone(config: Config, world: World, precision: Precision) -> tuple[nn.Module, str]:
    """The network in train mode, wrapped where there are ranks; and how, for the log.

    Raises ConfigError for what the device cannot do.
    """
    model = config.model
    if model.sync_bn and world.device.type == "cpu":
        raise ConfigError("model.sync_bn=True: expected a GPU, torch has no such layer for CPUs")
    if model.fused and (reason := obstacle(world.device)):
        raise ConfigError(f"model.fused=True: expected false, because {reason}")
    if model.winograd and world.device.type != "cpu":
        raise ConfigError("model.winograd=True: expected false on a GPU, whose libraries choose")
    torch.manual_seed(config.run.seed)
    backbone = create_network(config).to(world.device)
    if model.sync_bn:
        backbone = nn.SyncBatchNorm.convert_sync_batchnorm(backbone)
    backbone.train()
    freeze(backbone, config)
    if model.fused:
        fuse_batch_norm(backbone)
    if model.checkpointing:
        checkpoint_blocks(backbone, config.architecture.family.stages)
    about = [describe_learning(backbone, config)]
    if model.fused:
        about.append("BatchNorm fused")
    if model.winograd:
        about.append(_with_winograd(backbone, config))
    if model.checkpointing:
        about.append("blocks run again in backward")
    if model.compile:
        batch = config.data.global_batch // world.world_size // config.step.micro_batches
        size = config.data.image_size
        # With Winograd's products the code of a whole network would take a quarter of an hour.
        alone = world.world_size == 1 and not model.winograd
        about.append(
            compile_backbone(
                backbone,
                stages=config.architecture.family.stages,
                alone=alone,
                batch=batch,
                image_size=size,
                precision=precision,
            )
        )
    if world.world_size > 1:
        backbone, averaging = _average_gradients(backbone, config, world, precision)
        about.append(averaging)
    return backbone, ", ".join(about)


def _with_winograd(backbone: nn.Module, config: Config) -> str:
    found = use_winograd(backbone)
    if not found:
        raise ConfigError(
            f"model.winograd=True: expected false with model.name={config.model.name}, none of "
            "whose convolutions that learn is 3x3, of stride 1, and has 128 channels or more"
        )
    return f"{found} convolutions by Winograd's products"


def _average_gradients(
    backbone: nn.Module, config: Config, world: World, precision: Precision
) -> tuple[nn.Module, str]:
    bucket_mb = bucket_size(backbone)
    # The name by which torch knows not to send BatchNorm's statistics around at every step.
    parameters = inspect.signature(DistributedDataParallel).parameters
    sync = "forward_sync_buffers" if "forward_sync_buffers" in parameters else "broadcast_buffers"
    # Where the steps will run: the default stream, or the one that is recorded from.
    whole = config.step.cuda_graph == "full"
    unsynced: dict[str, Any] = {sync: False}
    with aside(world.device) if whole else nullcontext():
        wrapped = DistributedDataParallel(
            backbone,
            device_ids=None if world.device.type == "cpu" else [world.device],
            **unsynced,
            bucket_cap_mb=bucket_mb,
            gradient_as_bucket_view=True,
            # torch cannot hold back the averaging of parts in a graph that is said to be static.
            static_graph=config.step.micro_batches == 1,
        )
    hook = compression(world.device, precision) if config.step.compress_gradients else None
    if hook:
        wrapped.register_comm_hook(None, hook)
    width = "float32" if hook is None else str(precision.compute_dtype).removeprefix("torch.")
    return wrapped, f"gradients averaged in {width}, {bucket_mb:.1f} MB at a time"


def bucket_size(backbone: nn.Module) -> float:
    """MB of gradients that are averaged together."""
    total = sum(p.numel() * p.element_size() for p in _trained(backbone)) / 2**20
    return min(max(total / _BUCKETS, _BUCKET_MB[0]), _BUCKET_MB[1])


def compression(device: torch.device, precision: Precision) -> Callable | None:
    """What sends gradients in the compute dtype's 16 bits; CPUs average them in float32."""
    if device.type == "cpu":
        return None
    return {
        torch.float16: default_hooks.fp16_compress_hook,
        torch.bfloat16: default_hooks.bf16_compress_hook,
    }.get(precision.compute_dtype)


def _trained(backbone: nn.Module) -> list[nn.Parameter]:
    return [p for p in backbone.parameters() if p.requires_grad]


def average_statistics(backbone: nn.Module) -> None:
    """Average BatchNorm's running statistics over the ranks: each has only seen its own.

    Those that stay as they are, which the mean of three ranks would round, are left out.
    """
    if dist.get_world_size() == 1:
        return
    fixed = {
        id(buffer)
        for module in backbone.modules()
        if isinstance(module, _BatchNorm) and not module.training
        for buffer in module.buffers()
    }
    for buffer in backbone.buffers():
        if buffer.is_floating_point() and id(buffer) not in fixed:
            dist.all_reduce(buffer)
            buffer /= dist.get_world_size()


def unwrapped(backbone: nn.Module) -> nn.Module:
    """The network itself, without DistributedDataParallel around it."""
    return getattr(backbone, "module", backbone)
