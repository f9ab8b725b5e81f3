"""How much memory a run takes on each rank, by part, known before anything is allocated."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from heads import HeadClasses
from heads.centers import shard_of
from heads.memory import predict_memory
from heads.sampling import AllClasses, RandomClasses, Sampling
from models import create_model, normalize
from pipeline.augment import Augmentation
from pipeline.dali_decode import PREFETCH
from pipeline.dali_loader import choose_threads
from training.config import Config, DataConfig, HeadConfig, OptimConfig
from training.distributed import World
from training.precision import Precision


@dataclass(frozen=True)
class Prediction:
    """Bytes on the device of one rank, of that with the most centers.

    Left out is what nobody here asks for: libraries, their scratch memory, what an allocator
    holds without use.
    """

    backbone: int  # weights, gradients, the optimizer's state, BatchNorm's statistics
    activations: int  # kept for backward, of one micro-batch
    centers: int
    momentum: int  # of the centers
    transients: int  # of the head's step
    loader: int  # batches made ahead, in memory that torch does not see on an accelerator

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(self.parts.values())

    @property
    def parts(self) -> dict[str, int]:
        """Bytes by part."""
        return asdict(self)

    def __str__(self) -> str:
        """In 10^6 bytes, for the log."""
        parts = ", ".join(f"{name} {size / 1e6:,.0f}" for name, size in self.parts.items())
        return f"{self.total / 1e6:,.0f} MB a rank: {parts}"


def predict(config: Config, world: World, precision: Precision, *, num_classes: int) -> Prediction:
    """What a run takes; nothing is allocated to find out.

    config: one that training.config.check_batch accepts. num_classes: of the data.
    world: its ranks share the centers, those of a machine its cores.

    Compiling the backbone (model.compile) and the head's Triton kernels make it less. Raises
    ValueError for a model or an augmentation that cannot be built.
    """
    micro_batches = config.step.micro_batches
    batch = config.data.global_batch // world.world_size
    with torch.device("meta"):
        backbone = create_model(
            config.model.name,
            num_features=config.model.embedding_dim,
            dropout=config.model.dropout,
            width=config.model.width,
            image_size=config.data.image_size,
        )
    head = predict_memory(
        shard_of(num_classes, rank=0, world_size=world.world_size),
        config.model.embedding_dim,
        _sampling(config.head, config.run.epochs),
        global_batch=config.data.global_batch // micro_batches,
        subcenters=config.head.subcenters,
        compute_dtype=precision.head_dtype,
        adding=micro_batches > 1,
    )
    return Prediction(
        backbone=_backbone_bytes(backbone, config.optim),
        activations=activation_bytes(
            backbone,
            batch=batch // micro_batches,
            image_size=config.data.image_size,
            precision=precision,
        ),
        centers=head.centers,
        momentum=head.momentum,
        transients=head.step,
        loader=_batches_ahead(config.data, world.device, world.local_world_size)
        * batch
        * (3 * config.data.image_size**2 + torch.int64.itemsize),
    )


def activation_bytes(
    backbone: nn.Module, *, batch: int, image_size: int, precision: Precision
) -> int:
    """Bytes that a training forward of `batch` images keeps for backward.

    Parameters aside, but with their narrow copies under autocast. The forward runs on tensors that
    have no memory, as on a CPU: other devices keep the same.

    backbone: in train mode, on any device, the meta device included; left unchanged.
    """
    with FakeTensorMode():
        state = {
            name: torch.empty_strided(
                tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu"
            ).requires_grad_(tensor.requires_grad)
            for name, tensor in (*backbone.named_parameters(), *backbone.named_buffers())
        }
        shape = (batch, image_size, image_size, 3)
        images = torch.empty(shape, dtype=torch.uint8, device="cpu").permute(0, 3, 1, 2)

        def forward() -> Tensor:
            with precision.autocast(images.device):
                pixels = normalize(images, precision.compute_dtype)
                return torch.func.functional_call(backbone, state, (pixels,))

        return _kept_bytes(forward, besides=state.values())


def available_memory(device: torch.device, *, local_world_size: int) -> int:
    """Bytes that a rank may take: free ones of its accelerator, or its share of the machine's."""
    if device.type != "cpu":
        return torch.get_device_module(device).mem_get_info(device)[0]
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    meminfo, limit = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
    if meminfo.exists():  # where what files take of the memory counts as free
        (line,) = (
            line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable")
        )
        free = int(line.split()[1]) << 10
    if limit.exists() and (allowed := limit.read_text().strip()) != "max":
        free = min(free, int(allowed))
    return free // local_world_size


def _kept_bytes(forward: Callable[[], Tensor], *, besides: Iterable[Tensor]) -> int:
    """Bytes of what `forward` saves for backward, every storage once."""
    known = {tensor.untyped_storage()._cdata for tensor in besides}
    kept = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            kept[storage._cdata] = storage.nbytes()
        return tensor.detach()  # the tensor itself would keep its graph alive for ever

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return sum(kept.values())


def _backbone_bytes(backbone: nn.Module, optim: OptimConfig) -> int:
    """Weights, gradients, optimizer state and statistics; DDP's buckets are the gradients."""
    states = 2 if optim.name == "adamw" else int(optim.momentum > 0)
    parameters = list(backbone.parameters())
    trained = sum(parameter.nbytes for parameter in parameters if parameter.requires_grad)
    frozen = sum(parameter.nbytes for parameter in parameters if not parameter.requires_grad)
    statistics = sum(buffer.nbytes for buffer in backbone.buffers())
    # A step keeps a copy of the statistics, to go back to.
    return (2 + states) * trained + frozen + 2 * statistics


def _sampling(head: HeadConfig, epochs: int) -> Sampling:
    """The one of a run's samplings that takes most."""
    if head.sample_heads:
        return HeadClasses(
            head.sample_heads, random_heads=head.random_heads, scope=head.heads_scope
        )
    changes = [epoch for epoch in head.sample_rate_from if epoch < epochs]
    rate = max(head.sample_rate_at(epoch) for epoch in (0, *changes))
    return AllClasses() if rate == 1 else RandomClasses(rate)


def _batches_ahead(data: DataConfig, device: torch.device, local_world_size: int) -> int:
    """Batches that are held at once: the one in use, DALI's, and on a CPU the threads'."""
    batches = 1
    if device.type == "cpu":
        batches += (data.threads or choose_threads(local_world_size)) + PREFETCH
    if device.type != "cpu" or Augmentation(data.augment, mirrored_before=True).needs_graph:
        batches += PREFETCH
    return batches
