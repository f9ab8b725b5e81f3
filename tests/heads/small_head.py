"""A small head and batches for it."""

from __future__ import annotations

import torch
from torch import Tensor

from heads import ArcFace, PartialFC

CLASSES, DIM, BATCH = 40, 8, 6


def build(margin=None, **options) -> PartialFC:
    options = {"dtype": torch.float64, "compute_dtype": torch.float64, **options}
    return PartialFC(CLASSES, DIM, margin or ArcFace(), **options)


def batch(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    embeddings = 5 * torch.randn(BATCH, DIM, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, CLASSES, (BATCH,), generator=generator)
    labels[-1] = labels[0]
    return embeddings.to(dtype).requires_grad_(), labels


def state(head: PartialFC) -> tuple[Tensor, Tensor]:
    return head.centers.clone(), head.velocity.clone()


def unchanged(head: PartialFC, before: tuple[Tensor, Tensor]) -> bool:
    return torch.equal(head.centers, before[0]) and torch.equal(head.velocity, before[1])


def train(head: PartialFC, seed: int) -> float:
    embeddings, labels = batch(seed)
    loss = head(embeddings, labels)
    loss.backward()
    head.step(0.1)
    return loss.item()
