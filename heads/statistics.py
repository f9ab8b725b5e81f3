"""What the ranks tell one another of each row of the batch between the two passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from heads.ranks import Ranks

# What a rank may receive to have all ranks' statistics at once. It grows with the square of the
# ranks: 16 MiB at 128 with 128 images each, 1 GB at 1,024. 25 GB/s bring 16 MiB in 0.7 ms, in which
# a second collective begins.
GATHERED_BYTES = 16 << 20


class Statistics(NamedTuple):
    """Of each row over some classes, (G,) each; None where nobody needs it.

    Attributes:
        negative: log-sum-exp of the logits of all classes but the row's own.
        of_bank: the same over the expectations of the classes.
        cosine: to the own class's center; 0 where that is not among the classes.
        own: the same to the own class's expectation.
        largest: cosine to another class, before the hook has bent it.
    """

    negative: Tensor
    of_bank: Tensor | None = None
    cosine: Tensor | None = None
    own: Tensor | None = None
    largest: Tensor | None = None


_OVER_RANKS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "negative": lambda parts: parts.logsumexp(0),
    "of_bank": lambda parts: parts.logsumexp(0),
    "cosine": lambda parts: parts.sum(0),  # only the owner's is not 0
    "own": lambda parts: parts.sum(0),
    "largest": lambda parts: parts.amax(0),
}


def over_all_ranks(mine: Statistics, ranks: Ranks) -> Statistics:
    """Those over every rank's classes: one collective, two where one would be of many bytes.

    The sizes alone decide, so that a graph can record it.
    """
    given = {name: part for name, part in mine._asdict().items() if part is not None}
    if gathers(sum(part.nbytes for part in given.values()), world_size=ranks.world_size):
        gathered = _together(lambda stacked: ranks.all_gather(stacked).unbind(1), given)
        return Statistics(**{name: _OVER_RANKS[name](part) for name, part in gathered.items()})

    maxima = {name: part for name, part in given.items() if name not in ("cosine", "own")}
    maxima = _together(ranks.maximum, maxima)
    # As logsumexp does: what is not finite must not be subtracted from itself.
    shifts = {n: top.where(top.isfinite(), 0.0) for n, top in maxima.items() if n != "largest"}
    sums = {name: part for name, part in given.items() if name not in maxima}
    sums |= {name: (given[name] - shift).exp() for name, shift in shifts.items()}
    sums = _together(ranks.total, sums)
    logs = {name: sums[name].log() + shift for name, shift in shifts.items()}
    return Statistics(**maxima | sums | logs)


def gathers(size: int, *, world_size: int) -> bool:
    """Whether every rank gets all ranks' statistics, of `size` bytes each."""
    return world_size * size <= GATHERED_BYTES


def _together(
    collective: Callable[[Tensor], Iterable[Tensor]], parts: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """One collective for all parts, (G,) each."""
    return dict(zip(parts, collective(torch.stack(tuple(parts.values())))))
