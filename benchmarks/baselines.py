"""What Facestream is measured against: the head of InsightFace's arcface_torch, reimplemented; and
the bare matrix products of a head's step.

`ArcfaceTorchHead` computes a step as arcface_torch's PartialFC_V2 does with its CombinedMarginLoss
(m1 = 1, m3 = 0: ArcFace) on one process. What is kept, because it costs time or memory or changes
the numbers:

- The weight is an fp32 parameter and SGD sees all of it: at sample_rate < 1 the indexing's gradient
  is dense, momentum and weight decay move every row, sampled or not.
- The sample is the positives and, by a top-k over one random number per class, drawn on the CPU,
  others up to int(sample_rate · C); where the positives are more, they alone, in another shape.
- arccos and cos run over all logits in place and outside autograd, so the margin's gradient is
  straight-through. Nothing guards θ + m > π.
- The softmax cross-entropy keeps the whole probability matrix, floors each probability at 1e-30,
  which caps the loss of a sample at 69.08, and reads the loss gradient on the host. It picks out
  the rows whose class is on the rank: on one process those are all rows, yet each such indexing
  copies the matrix and waits for the device.
- Normalization and the matrix product are under autocast if fp16 is on, which it calls `fp16` and
  we `autocast`; the logits are float32 from there on. With it off, a surrounding autocast is too.

Left out: the collectives, which on one process only copy, inter-class filtering, and the gradient
scaler, which belongs to the training loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear, normalize

_INIT_STD = 0.01
_SMALLEST_PROBABILITY = 1e-30


class ArcfaceTorchHead(nn.Module):
    """arcface_torch's head with its optimizer: `loss = head(x, y); loss.backward(); head.step(lr)`.

    Args:
        sample_rate: in (0, 1].
        margin: radians.
        seed: of the initial weight and of the sampling.
        autocast: the products in the device's autocast type (float16 on CUDA, bfloat16 on CPUs).
        device: of the weight; the CPU by default.

    Attributes:
        weight: (num_classes, embedding_dim) float32 parameter from N(0, 0.01²).
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        sample_rate: float,
        margin: float = 0.5,
        scale: float = 64.0,
        seed: int,
        autocast: bool = False,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.sample_rate = sample_rate
        self.num_sample = int(sample_rate * num_classes)
        self.margin = margin
        self.scale = scale
        self.autocast = autocast
        self.generator = torch.Generator().manual_seed(seed)
        weight = torch.empty(num_classes, embedding_dim, device=device)
        # Millions of rows are drawn where they are.
        generator = torch.Generator(weight.device).manual_seed(seed)
        self.weight = nn.Parameter(weight.normal_(0, _INIT_STD, generator=generator))
        self.optimizer = torch.optim.SGD([self.weight], lr=0.0, momentum=0.9, weight_decay=5e-4)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """(B, D) float32 embeddings, (B,) int64 class ids in [0, num_classes) → 0-d mean loss."""
        weight: Tensor = self.weight
        columns = labels
        if self.sample_rate < 1:
            index = self._sample(labels)  # (S,)
            columns = torch.searchsorted(index, labels)
            weight = self.weight[index]  # (S, D)
        with torch.autocast(embeddings.device.type, enabled=self.autocast):
            logits = linear(normalize(embeddings), normalize(weight))  # (B, S)
        logits = logits.float().clamp(-1, 1)
        return _SoftmaxCrossEntropy.apply(self._bend(logits, columns), columns)

    @torch.no_grad()
    def _sample(self, labels: Tensor) -> Tensor:
        """(S,) int64 ascending: the positives, and random others up to num_sample."""
        positives = labels.unique()
        if positives.shape[0] > self.num_sample:
            return positives
        chance = torch.rand(self.weight.shape[0], generator=self.generator).to(labels.device)
        chance[positives] = 2.0
        return chance.topk(self.num_sample).indices.sort().values

    def _bend(self, logits: Tensor, columns: Tensor) -> Tensor:
        """(B, S) cosines, overwritten → (B, S) logits; autograd sees the scale alone."""
        present = torch.where(columns != -1)[0]
        target = logits[present, columns[present]]
        with torch.no_grad():
            target.arccos_()
            logits.arccos_()
            logits[present, columns[present]] = target + self.margin
            logits.cos_()
        return logits * self.scale

    def step(self, lr: float) -> None:
        """SGD over the full weight; its gradient is dropped, as zero_grad does by default."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()


class _SoftmaxCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of logits (B, S), which become the probabilities in place."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, columns: Tensor) -> Tensor:
        logits.sub_(logits.max(dim=1, keepdim=True).values).exp_()
        logits.div_(logits.sum(dim=1, keepdim=True))
        present = torch.where(columns != -1)[0]
        target = torch.zeros(logits.shape[0], 1, device=logits.device)
        target[present] = logits[present].gather(1, columns[present].unsqueeze(1))
        ctx.save_for_backward(logits, columns, present)
        return -target.clamp_min_(_SMALLEST_PROBABILITY).log_().mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_grad: Tensor) -> tuple[Tensor, None]:
        probabilities, columns, present = ctx.saved_tensors
        one_hot = torch.zeros(present.shape[0], probabilities.shape[1], device=columns.device)
        one_hot.scatter_(1, columns[present].unsqueeze(1), 1)
        probabilities[present] -= one_hot
        probabilities.div_(probabilities.shape[0])
        return probabilities * loss_grad.item(), None


def bare_products(
    rows: int, dtype: torch.dtype, *, batch: int, dim: int, device: torch.device | None = None
) -> Callable[[], None]:
    """Logits, embedding gradient, center gradient: nothing else, into memory that is there."""
    embeddings, weight, logits = (
        torch.randn(shape, device=device).to(dtype)
        for shape in ((batch, dim), (rows, dim), (batch, rows))
    )
    outs = [torch.empty_like(tensor) for tensor in (logits, embeddings, weight)]

    def step() -> None:
        torch.mm(embeddings, weight.T, out=outs[0])
        torch.mm(logits, weight, out=outs[1])
        torch.mm(logits.T, embeddings, out=outs[2])

    return step
