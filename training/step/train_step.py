"""One training step: from a uint8 batch to updated weights, with nothing read from the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from heads import PartialFC
from models.normalize import normalize
from training.step.optim import clip_gradients
from training.step.precision import Precision

Lap = Callable[[str], None]  # called with the name of a phase when it has ended


class Distiller(Protocol):
    """What draws embeddings to a teacher's; see training/distill/distillation.py."""

    def set_step(self, step: int) -> None:
        """Before each step, outside what a CUDA graph records."""

    def targets(self, images: Tensor, records: np.ndarray) -> Tensor:
        """The teacher's embeddings of the batch; outside what a CUDA graph records, too."""

    def __call__(self, embeddings: Tensor, targets: Tensor) -> Tensor:
        """The weighted loss of (B, D) and (B, D), 0-d float32; graph-safe."""


class StepResult(NamedTuple):
    """What a step tells, as 0-d tensors on its device."""

    loss: Tensor  # of the head, for the global batch
    distillation: Tensor  # its weighted loss beside that, for this rank's batch
    gradient_norm: Tensor  # of the backbone, before clipping
    embedding_norm: Tensor  # mean over this rank's batch
    skipped: Tensor  # bool: not finite, so nothing was changed
    loss_scale: Tensor  # for the next step; 1 where losses are not scaled


class TrainStep:
    """Backbone, head and optimizer, moved one batch at a time.

    Args:
        backbone: images to embeddings; wrapped in DistributedDataParallel where there are ranks.
        head: owns the class centers and updates them itself.
        optimizer: of the backbone, with a tensor learning rate.
        distillation: draws embeddings to a teacher's; None for none.
        clip: largest norm of the backbone's gradient; 0 for any.
        head_lr_ratio: the centers' learning rate over the backbone's.
        micro_batches: parts that a rank's batch is computed in, one after another, to need less
            memory (gradient accumulation); gradients are those of the whole, but for BatchNorm,
            which sees a part at a time.
        world_size: DDP averages gradients over ranks, while the loss already is the global mean.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: PartialFC,
        optimizer: torch.optim.Optimizer,
        distillation: Distiller | None = None,
        *,
        precision: Precision,
        clip: float,
        head_lr_ratio: float = 1.0,
        micro_batches: int = 1,
        world_size: int,
    ) -> None:
        self.backbone, self.head, self.optimizer = backbone, head, optimizer
        self.distillation = distillation
        self.scaler = torch.amp.GradScaler(head.device.type, enabled=precision.loss_scaling)
        self._parameters = [p for p in backbone.parameters() if p.requires_grad]
        # BatchNorm's statistics before the step, to go back to if it must not count.
        self._buffers = list(backbone.buffers())
        self._kept = [torch.empty_like(buffer) for buffer in self._buffers]
        self._precision, self._clip, self._head_lr_ratio = precision, clip, head_lr_ratio
        self._parts, self._world_size = micro_batches, world_size
        # While this 0-d tensor is true only the centers learn: set it between steps.
        self.centers_alone = torch.zeros((), dtype=torch.bool, device=head.device)

    def __call__(
        self,
        images: Tensor,
        labels: Tensor,
        lr: Tensor,
        lap: Lap,
        targets: Tensor | None = None,
        columns: Tensor | None = None,
    ) -> StepResult:
        """Train on images (B, 3, H, W) uint8 and labels (B,) int64 of this rank.

        Args:
            images: B of them, a multiple of `micro_batches`.
            lr: 0-d, and the optimizer's own.
            targets: the teacher's embeddings (B, D), where there is distillation.
            columns: (B, k) of the head's columns, where it has any.
        """
        if self._buffers:  # a network may have no BatchNorm
            torch._foreach_copy_(self._kept, self._buffers)
        self.optimizer.zero_grad()
        if self._parts > 1:
            self.head.begin_step(labels.view(self._parts, -1))
        sums = torch.zeros(3, device=images.device)
        batch = (images, labels, targets, columns)
        for number, part in enumerate(zip(*(_parts(tensor, self._parts) for tensor in batch))):
            with self._averaging(last=number == self._parts - 1):
                sums += self._accumulate(lap, *part)
        loss, distilled, embedding_norm = sums

        self.scaler.unscale_(self.optimizer)
        norm = clip_gradients(self._parameters, self._clip)
        skipped = ~torch.isfinite(norm)
        stays = skipped | self.centers_alone
        # The scaler's own step would judge single gradients: backbone and head must skip together.
        fused: Any = self.optimizer
        fused.found_inf = stays.to(torch.float32)
        self.optimizer.step()
        if self.scaler.is_enabled():
            self.scaler.update()
        for buffer, kept in zip(self._buffers, self._kept):
            torch.where(stays, kept, buffer, out=buffer)
        lap("update")
        self.head.step(lr * self._head_lr_ratio, skip=skipped)
        lap("head")
        return StepResult(
            loss=loss,
            distillation=distilled,
            gradient_norm=norm,
            embedding_norm=embedding_norm,
            skipped=skipped,
            loss_scale=self.scaler.scale(torch.ones_like(norm)),
        )

    def _accumulate(
        self,
        lap: Lap,
        images: Tensor,
        labels: Tensor,
        targets: Tensor | None,
        columns: Tensor | None,
    ) -> Tensor:
        """Add up the gradients of a part of the batch; returns (3,) what it contributes to the
        loss, the distillation and the mean embedding norm."""
        with self._precision.autocast(images.device):
            embeddings = self.backbone(normalize(images, self._precision.compute_dtype))  # (B, D)
        lap("forward")
        loss = self.head(embeddings, labels, columns)
        lap("head")
        distilled = torch.zeros_like(loss)
        if self.distillation is not None and targets is not None:
            distilled = self.distillation(embeddings, targets) / self._parts
        # Ranks average gradients: of the head's loss, which is the global mean, each has a share,
        # of the distillation each has the mean over its own images.
        self.scaler.scale(loss * self._world_size + distilled).backward()
        lap("backward")
        norm = embeddings.detach().float().norm(dim=1).mean() / self._parts
        return torch.stack([loss.detach(), distilled.detach(), norm])

    def _averaging(self, *, last: bool) -> AbstractContextManager:
        """Ranks average their gradients (all-reduce) once a step, in its last part's backward."""
        if last or not isinstance(self.backbone, DistributedDataParallel):
            return nullcontext()
        return self.backbone.no_sync()


def _parts(tensor: Any, count: int) -> Sequence[Any]:
    """The tensor's parts; where there is none, nothing for each of them."""
    return [None] * count if tensor is None else tensor.chunk(count)
