"""How long a step takes on cards that need not be here: what it counts, at data sheets' peaks.

    multiplications / FLOP/s + bytes / bandwidth + launches + what of the exchange nothing hides

Every operation counts as a kernel of its own, none overlaps another of its rank, and each runs at
the card's peak. Real kernels are slower, and fused ones move less: REACHED says how published
trainings compare with it. Nothing here is measured.
"""

from __future__ import annotations

from typing import NamedTuple

from heads.cost import HeadCost
from training.planning.cards import Fleet

LAUNCH = 4e-6  # seconds from one kernel to the next, as a round figure
# Bytes for a parameter with SGD and momentum: its copy in 16 bits, its gradient from there, and the
# update, which reads weight, gradient and momentum and writes two of them.
UPDATE = 6 + 6 + 20
_PIECES = 8  # in which gradients travel; the last has nothing left to hide behind
_BACKWARD = 2 / 3  # of a backbone's time


class Reached(NamedTuple):
    """Published speeds over counted ones.

    Attributes:
        usual: the middle of arcface_torch's tables.
        tuned: the middle of NVIDIA's of ResNet-50.
        lowest, highest: of all.
    """

    usual: float
    tuned: float
    lowest: float
    highest: float


# benchmarks/published_speeds.py finds these.
REACHED = Reached(usual=0.47, tuned=0.86, lowest=0.25, highest=1.02)


class Work(NamedTuple):
    """Of one step of one rank.

    Attributes:
        flops, bytes, launches: of the backbone, forward and backward.
        updated: parameters that learn.
        averaged: bytes of their gradients, as they travel.
        head: the same of the head.
        fetched: bytes of centers each way between the card and the machine's memory.
    """

    flops: float
    bytes: float
    launches: int
    updated: int
    averaged: int
    head: HeadCost
    fetched: int = 0


class Sent(NamedTuple):
    """Bytes that a rank sends, and gets, in a step, through a ring of all."""

    gradients: float
    head: float


class Seconds(NamedTuple):
    """Of one step, by what takes them; of exchange and fetching what is not hidden."""

    backbone_products: float
    backbone_memory: float
    head_products: float
    head_memory: float
    launches: float
    gradients: float
    head_exchange: float
    fetch: float

    @property
    def total(self) -> float:
        return sum(self)


def sent(work: Work, ranks: int) -> Sent:
    """Of n ranks each passes on all parts but one: of a sum twice, for it and for its result."""
    others = ranks - 1
    return Sent(
        gradients=2 * others * work.averaged / ranks,
        head=others * (work.head.gathered + work.head.scattered / ranks),
    )


def step_seconds(work: Work, fleet: Fleet) -> Seconds:
    """What one step counts on these cards."""
    card, head, travels = fleet.card, work.head, sent(work, fleet.count)
    products, memory = work.flops / card.flops, work.bytes / card.bandwidth
    averaging = travels.gradients / fleet.wire
    hidden = min(averaging * (1 - 1 / _PIECES), _BACKWARD * (products + memory))
    found = Seconds(
        backbone_products=products,
        backbone_memory=memory + UPDATE * work.updated / card.bandwidth,
        head_products=head.flops / card.flops,
        head_memory=head.bytes / card.bandwidth,
        launches=LAUNCH * (work.launches + head.launches),
        gradients=averaging - hidden,
        head_exchange=travels.head / fleet.wire,
        fetch=0.0,
    )
    # Rows come ahead of their step and go back after it, both while others are computed.
    return found._replace(fetch=max(0.0, work.fetched / card.host - found.total))
