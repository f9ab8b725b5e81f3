"""arcface_torch's training step and checkpoint files in plain PyTorch, written after its
train_v2.py and partial_fc_v2.py."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import linear, normalize
from torch.optim.lr_scheduler import LRScheduler

from models import Architecture
from training.arcface_torch.weights import rows_of

SCALE = 64.0


class LinearDecay(LRScheduler):
    """Its PolynomialLRWarmup: each rate is made of the one before, and the first is the highest."""

    def __init__(self, optimizer: torch.optim.Optimizer, *, warmup: int, total: int) -> None:
        self.warmup_iters, self.total_iters, self.power = warmup, total, 1.0
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        step, warmup, rates = self.last_epoch, self.warmup_iters, self.optimizer.param_groups
        if step == 0 or step > self.total_iters:
            return [group["lr"] for group in rates]
        if step <= warmup:
            return [rate * step / warmup for rate in self.base_lrs]
        length = self.total_iters - warmup
        left, before = 1.0 - (step - warmup) / length, 1.0 - (step - 1 - warmup) / length
        return [group["lr"] * (left / before) ** self.power for group in rates]


class Reference:
    """A rank of arcface_torch; margin_list as its configurations have it."""

    def __init__(
        self,
        architecture: Architecture,
        *,
        num_classes: int,
        margin_list: tuple[float, float, float],
        rate: float,
        warmup: int,
        total: int,
        weight_decay: float = 5e-4,
    ) -> None:
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.backbone, self.margins = architecture.create().train(), margin_list
        counts = [rows_of(num_classes, rank=r, world_size=self.world_size) for r in range(8)]
        self.first, self.count = sum(counts[: self.rank]), counts[self.rank]
        self.own = slice(self.first, self.first + self.count)  # of the classes
        self.weight = nn.Parameter(torch.normal(0, 0.01, (self.count, architecture.embedding_dim)))
        groups = [{"params": self.backbone.parameters()}, {"params": [self.weight]}]
        self.optimizer = torch.optim.SGD(groups, lr=rate, momentum=0.9, weight_decay=weight_decay)
        self.scheduler = LinearDecay(self.optimizer, warmup=warmup, total=total)
        self.steps = 0

    def step(self, images: Tensor, labels: Tensor) -> float:
        """On this rank's images (B, 3, H, W) in [-1, 1] and labels (B,); the loss of all ranks."""
        self.optimizer.zero_grad()
        embeddings = self.backbone(images)
        loss, gradient = self._head(embeddings.detach(), labels)
        # The mean over ranks, as DDP takes it, of a gradient that was multiplied by their number.
        embeddings.backward(gradient * self.world_size)
        for parameter in self.backbone.parameters():
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad /= self.world_size
        nn.utils.clip_grad_norm_(self.backbone.parameters(), 5)
        self.optimizer.step()
        self.scheduler.step()
        self.steps += 1
        return loss

    def _head(self, local: Tensor, local_labels: Tensor) -> tuple[float, Tensor]:
        """The loss, and its gradient for this rank's embeddings."""
        embeddings, labels = _of_all(local).requires_grad_(), _of_all(local_labels)
        batch = len(labels)
        logits = linear(normalize(embeddings), normalize(self.weight)).clamp(-1, 1)
        mine = (self.first <= labels) & (labels < self.first + self.count)
        rows, columns = mine.nonzero().flatten(), labels[mine] - self.first
        logits = self._with_margin(logits, rows, columns) * SCALE
        with torch.no_grad():
            largest = logits.amax(1, keepdim=True)
            dist.all_reduce(largest, dist.ReduceOp.MAX)
            share = (logits - largest).exp()
            total = share.sum(1, keepdim=True)
            dist.all_reduce(total)
            share /= total
            target = torch.zeros(batch)
            target[rows] = share[rows, columns]
            dist.all_reduce(target)
            loss = -target.clamp_min(1e-30).log().mean()
            share[rows, columns] -= 1
        logits.backward(share / batch)
        dist.all_reduce(embeddings.grad)
        return loss.item(), embeddings.grad.chunk(self.world_size)[self.rank]

    def _with_margin(self, cosines: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        m1, m2, m3 = self.margins
        if m1 == 1 and m3 == 0:
            with torch.no_grad():  # the gradient goes straight through
                angles = cosines.arccos()
                angles[rows, columns] += m2
                bent = angles.cos()
            return cosines + (bent - cosines).detach()
        margin = torch.zeros_like(cosines)
        margin[rows, columns] = m3
        return cosines - margin

    def save(self, folder: Path, *, epoch: int) -> None:
        """What train_v2.py writes at the end of an epoch with save_all_states."""
        state = {
            "epoch": epoch,
            "global_step": self.steps,
            "state_dict_backbone": self.backbone.state_dict(),
            "state_dict_softmax_fc": {"weight": self.weight.detach()},
            "state_optimizer": self.optimizer.state_dict(),
            "state_lr_scheduler": self.scheduler.state_dict(),
        }
        torch.save(state, folder / f"checkpoint_gpu_{self.rank}.pt")
        if self.rank == 0:
            torch.save(self.backbone.state_dict(), folder / "model.pt")

    def resume(self, folder: Path) -> None:
        """As train_v2.py with resume."""
        state = torch.load(folder / f"checkpoint_gpu_{self.rank}.pt", weights_only=True)
        self.steps = state["global_step"]
        self.backbone.load_state_dict(state["state_dict_backbone"])
        self.weight.data.copy_(state["state_dict_softmax_fc"]["weight"])
        self.optimizer.load_state_dict(state["state_optimizer"])
        self.scheduler.load_state_dict(state["state_lr_scheduler"])


def _of_all(tensor: Tensor) -> Tensor:
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor)
    return torch.cat(parts)
