"""One training step: from a uint8 batch to updated weights, with nothing read from the device."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from heads import PartialFC
from models.normalize import normalize
from training.precision import Precision
from training.stopwatch import Stopwatch


class StepResult(NamedTuple):
    """What a step tells, as 0-d tensors on its device."""

    loss: Tensor  # of the global batch
    gradient_norm: Tensor  # of the backbone, before clipping
    embedding_norm: Tensor  # mean over this rank's batch
    skipped: Tensor  # bool: not finite, so nothing was changed


class TrainStep:
    """Backbone, head and optimizer, moved one batch at a time.

    Args:
        backbone: images to embeddings; wrapped in DistributedDataParallel where there are ranks.
        head: owns the class centers and updates them itself.
        optimizer: of the backbone, with a tensor learning rate.
        clip: largest norm of the backbone's gradient.
        world_size: DDP averages gradients over ranks, while the loss already is the global mean.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: PartialFC,
        optimizer: torch.optim.Optimizer,
        *,
        precision: Precision,
        clip: float,
        world_size: int,
    ) -> None:
        self.backbone, self.head, self.optimizer = backbone, head, optimizer
        self.scaler = torch.amp.GradScaler(head.centers.device.type, enabled=precision.loss_scaling)
        self._parameters = [p for p in backbone.parameters() if p.requires_grad]
        # BatchNorm's statistics before the step, to go back to if it must not count.
        self._buffers = list(backbone.buffers())
        self._kept = [torch.empty_like(buffer) for buffer in self._buffers]
        self._precision, self._clip, self._world_size = precision, clip, world_size

    def __call__(
        self, images: Tensor, labels: Tensor, lr: Tensor, stopwatch: Stopwatch
    ) -> StepResult:
        """Train on images (B, 3, H, W) uint8 and labels (B,) int64 of this rank."""
        torch._foreach_copy_(self._kept, self._buffers)
        with self._precision.autocast(images.device):
            embeddings = self.backbone(normalize(images, self._precision.compute_dtype))  # (B, D)
        stopwatch.lap("forward")
        loss = self.head(embeddings, labels)
        stopwatch.lap("head")
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss * self._world_size).backward()
        stopwatch.lap("backward")

        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self._parameters, self._clip)
        skipped = ~torch.isfinite(norm)
        # The scaler's own step would judge single gradients: backbone and head must skip together.
        self.optimizer.found_inf = skipped.to(torch.float32)
        self.optimizer.step()
        if self.scaler.is_enabled():
            self.scaler.update()
        for buffer, kept in zip(self._buffers, self._kept):
            torch.where(skipped, kept, buffer, out=buffer)
        stopwatch.lap("update")
        self.head.step(lr, skip=skipped)
        stopwatch.lap("head")
        return StepResult(
            loss=loss.detach(),
            gradient_norm=norm,
            embedding_norm=embeddings.detach().float().norm(dim=1).mean(),
            skipped=skipped,
        )
