"""A training state written as arcface_torch saves it, for any number of ranks."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from training.arcface_torch.weights import ArcFaceTorchError, Weights, rows_of, trained


def write_arcface_torch(
    folder: Path,
    weights: Weights,
    *,
    world_size: int,
    epoch: int,
    rate: float,
    peak_rate: float,
    momentum: float,
    weight_decay: float,
) -> list[Path]:
    """Write model.pt and, where there are centers, what arcface_torch resumes `world_size` ranks
    from; returns the files.

    Args:
        epoch: epochs done, with which it resumes.
        rate: of the next step. Its scheduler multiplies the rate that it finds, so one of 0 stays
            0.
        peak_rate: what its schedule starts from, the highest.
        momentum, weight_decay: of its SGD.

    Raises:
        ArcFaceTorchError: where there are fewer classes than ranks.
    """
    num_classes = 0 if weights.centers is None else len(weights.centers)
    if 0 < num_classes < world_size:
        raise ArcFaceTorchError(
            f"{num_classes} classes for {world_size} ranks: expected fewer ranks"
        )
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "model.pt"]
    torch.save(weights.backbone, written[0])
    if weights.centers is None:
        return written
    network = weights.architecture.create()
    sizes = [rows_of(num_classes, rank=r, world_size=world_size) for r in range(world_size)]
    velocity = weights.velocity
    if velocity is None:
        velocity = torch.zeros_like(weights.centers)
    for rank, (rows, moved) in enumerate(zip(weights.centers.split(sizes), velocity.split(sizes))):
        centers = nn.Parameter(rows.clone())  # or the whole would be saved with every part
        sgd = torch.optim.SGD(
            [{"params": list(network.parameters())}, {"params": [centers]}],
            lr=rate,
            momentum=momentum,
            weight_decay=weight_decay,
        )
        for group in sgd.param_groups:
            group["initial_lr"] = peak_rate
        for name, parameter in trained(network).items() if weights.momentum else ():
            known = weights.momentum.get(name)  # none of what was frozen
            sgd.state[parameter]["momentum_buffer"] = (
                torch.zeros_like(parameter) if known is None else known
            )
        sgd.state[centers]["momentum_buffer"] = moved.clone()
        written.append(folder / f"checkpoint_gpu_{rank}.pt")
        torch.save(
            {
                "epoch": epoch,
                "global_step": weights.step,
                "state_dict_backbone": weights.backbone,
                "state_dict_softmax_fc": {"weight": centers.detach()},
                "state_optimizer": sgd.state_dict(),
                "state_lr_scheduler": {"last_epoch": weights.step, "_step_count": weights.step + 1},
            },
            written[-1],
        )
    return written
