"""The collectives a head needs, over a process group or over this process alone."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


class Ranks:
    """The ranks that share the classes.

    Args:
        group: None for the default group where torch.distributed is initialized by now, else this
            process alone.
    """

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        distributed = dist.is_available() and dist.is_initialized()
        self._group = group
        self.rank = dist.get_rank(group) if distributed else 0
        self.world_size = dist.get_world_size(group) if distributed else 1

    def graph_obstacle(self, device: torch.device) -> str | None:
        """Why the collectives on a device cannot be recorded as a graph; None where they can."""
        if self.world_size == 1:
            return None
        # Such as "cpu:gloo,cuda:nccl".
        config = str(dist.get_backend_config(self._group))
        backend = dict(part.split(":") for part in config.split(",")).get(device.type, "nothing")
        return None if backend == "nccl" else f"{backend} cannot record its collectives, nccl can"

    def all_agree(self, holds: bool, device: torch.device) -> bool:
        """Whether it holds on every rank; waits for them."""
        if self.world_size == 1:
            return holds
        held = torch.tensor(int(holds), device=device)
        dist.all_reduce(held, dist.ReduceOp.MIN, group=self._group)
        return bool(held.item())

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Every rank's tensor, stacked: (world_size, ...)."""
        if self.world_size == 1:
            return tensor.unsqueeze(0)
        gathered = tensor.new_empty(self.world_size * tensor.shape[0], *tensor.shape[1:])
        # torch 2.13 has new names for these two collectives and warns of the old ones.
        gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        gather(gathered, tensor, group=self._group)
        return gathered.view(self.world_size, *tensor.shape)

    def gather_batch(
        self, embeddings: Tensor, labels: Tensor, columns: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Every rank's (B, D) embeddings, (B,) int64 labels and (B, k) columns, where there are
        any, in the order of the ranks.

        One collective (all_gather): labels and columns travel beside the embeddings as bytes, and
        stay exact.
        """
        parts = [labels.unsqueeze(1), embeddings.contiguous()]  # (B, 1), (B, D)
        if columns is not None:
            parts.append(columns.contiguous())
        packed = torch.cat([part.view(torch.uint8) for part in parts], dim=1)
        widths = [part.shape[1] * part.itemsize for part in parts]
        gathered = self.all_gather(packed).flatten(0, 1).split(widths, dim=1)
        labels, embeddings, *rest = (
            bytes_of.contiguous().view(part.dtype) for bytes_of, part in zip(gathered, parts)
        )
        return embeddings, labels.squeeze(1), rest[0] if rest else None

    def maximum(self, tensor: Tensor) -> Tensor:
        """Each element's largest over the ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self._group)
        return tensor

    def total(self, tensor: Tensor) -> Tensor:
        """Each element's sum over the ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor, group=self._group)
        return tensor

    def reduce_scatter(self, shares: Tensor) -> Tensor:
        """(G, D) on every rank → the sum over ranks of this rank's (G / world_size, D)."""
        if self.world_size == 1:
            return shares
        total = shares.new_empty(shares.shape[0] // self.world_size, *shares.shape[1:])
        scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
        scatter(total, shares, group=self._group)
        return total
