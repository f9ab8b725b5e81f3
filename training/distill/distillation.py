"""Knowledge distillation: a frozen teacher's embeddings as targets beside the labels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.collection import Collection
from training.config import Config, ConfigError, DistillConfig
from training.distill.embedding_cache import CachedEmbeddings
from training.distill.teacher import fingerprint_teacher, load_teacher, name_teacher
from training.step.precision import Precision

Targets = Callable[[Tensor, np.ndarray], Tensor]


def cosine_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """1 − cos of the angle between (B, D) and (B, D), mean over the batch: in [0, 2].

    Only directions are compared, as verification does. ShrinkTeaNet's angular distillation
    (https://arxiv.org/abs/1905.10620) squares this distance, which makes its gradient vanish near
    the goal.
    """
    return 1 - F.cosine_similarity(student, teacher, dim=1).mean()


def l2_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of (B, D) and (B, D) as they are, over D, mean over the batch.

    As FitNets (https://arxiv.org/abs/1412.6550) does it, lengths count too: they tell an image's
    quality. Of L2-normalized embeddings it would be the cosine loss again, times 2 / D.
    """
    return F.mse_loss(student, teacher)


LOSSES = {"cosine": cosine_loss, "l2": l2_loss}


class Distillation:
    """The loss that draws a student's embeddings to its teacher's, in two parts.

    `targets` asks the teacher or reads from disk, so it stays outside what a CUDA graph records;
    the call is graph-safe.

    Args:
        config: which loss, and its weight at the first and the last step.
        targets: the teacher's embeddings (B, D) float32 on the device, of images (B, 3, H, W)
            uint8 as the student sees them and their (B,) int64 record numbers on the host.
        total_steps: of the run, over which the weight moves linearly.
        device: of the embeddings.
        source: what the targets are, in words for the log.
    """

    def __init__(
        self,
        config: DistillConfig,
        targets: Targets,
        *,
        total_steps: int,
        device: torch.device,
        source: str,
    ) -> None:
        self.weight = torch.full((), config.weight, device=device)
        self.targets, self._config, self._total_steps = targets, config, total_steps
        self._loss, self._source = LOSSES[config.loss], source

    def set_step(self, step: int) -> None:
        """Set the weight of step 0 … total_steps − 1."""
        first, last = self._config.weight, self._config.last_weight
        self.weight.fill_(first + (last - first) * step / max(1, self._total_steps - 1))

    def __call__(self, embeddings: Tensor, targets: Tensor) -> Tensor:
        """The weighted loss of (B, D) and (B, D), 0-d float32: a mean over this batch alone."""
        return self.weight * self._loss(embeddings.float(), targets)

    def __str__(self) -> str:
        config = self._config
        return f"{config.loss} loss × {config.weight:g} → {config.last_weight:g}, {self._source}"


def create_distillation(
    config: Config,
    records: Collection,
    *,
    total_steps: int,
    device: torch.device,
    precision: Precision,
) -> Distillation | None:
    """What `config.distill` asks for, None where it names no teacher; call it on every rank.

    Raises:
        UserError: a subclass of it, where the teacher or its cached embeddings cannot be read or
            are not as long as the student's.
    """
    distill = config.distill
    if not distill.teacher:
        return None
    if distill.cached:
        fingerprint = fingerprint_teacher(config)
        cache = CachedEmbeddings(records, teacher=fingerprint)
        targets, dim = _lookup(cache, device), cache.embedding_dim
        where = "looked up, of images without augmentation"
    else:
        teacher = load_teacher(config, device=device, precision=precision)
        targets, dim, fingerprint = _ask(teacher.embed), teacher.embedding_dim, teacher.fingerprint
        where = "computed for every batch"
    if dim != config.model.embedding_dim:
        raise ConfigError(
            f"model.embedding_dim={config.model.embedding_dim}: expected {dim}, as long as the "
            f"embeddings of distill.teacher={distill.teacher}"
        )
    given = f"given {config.teacher_input}, {where}"
    return Distillation(
        distill,
        targets,
        total_steps=total_steps,
        device=device,
        source=f"teacher {name_teacher(config)} ({fingerprint}), {given}",
    )


def _ask(embed: Callable[[Tensor], Tensor]) -> Targets:
    return lambda images, records: embed(images)


def _lookup(cache: CachedEmbeddings, device: torch.device) -> Targets:
    def look_up(images: Tensor, records: np.ndarray) -> Tensor:
        rows = torch.from_numpy(cache(records))
        if device.type != "cpu":
            rows = rows.pin_memory()  # or the copy would wait for the device
        return rows.to(device, non_blocking=True).float()

    return look_up
