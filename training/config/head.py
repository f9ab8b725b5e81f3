"""Settings ``head.*``: the loss, the sample of the centers and what they learn by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

from training.config.checks import check, check_ranges
from training.setting_range import (
    Amount,
    Count,
    CountOrZero,
    Decay,
    Fraction,
    Positive,
    Range,
    Remainder,
)

T = TypeVar("T")

# What the centers and their momentum can be kept in.
RowDtype = Literal["float32", "bfloat16", "float8_e4m3"]


@dataclass(frozen=True)
class HeadConfig:
    """The margin head; its losses are those of heads.create_margin."""

    loss: str = "arcface"  # a margin of docs/heads.md
    loss_args: dict[str, Any] = field(default_factory=dict)  # e.g. margin, scale, gradient
    extra_terms: dict[str, Any] = field(default_factory=dict)  # of docs/heads.md, with their values
    expectation_margin: Fraction | None = None  # LVFace's penalty by expectations; None: without
    expectation_margin_from: dict[CountOrZero, Fraction] = field(default_factory=dict)  # by epoch
    margin_warmup_epochs: Amount = 0.0  # over which the margin grows from nothing to the whole
    sample_rate: Fraction = 1.0  # share of the centers in a step; 0: those of the batch's classes
    sample_rate_from: dict[CountOrZero, Fraction] = field(default_factory=dict)  # by first epoch
    sample_count: CountOrZero = 0  # instead of a rate: so many centers of all ranks together
    sample_groups: CountOrZero = 0  # instead of a rate: of so many groups, those of the labels
    random_groups: CountOrZero = 0  # and so many others
    groups_scope: Literal["batch", "sample"] = "batch"  # who sees a group: all samples, or its own
    hard_negatives: Fraction = 0.0  # share of a sample that is near the batch's classes; 0: random
    neighbors: Annotated[int, Range(1, 1000)] = 16  # each class's nearest, of which they are taken
    neighbors_every: Count = 1000  # steps in which these are searched again
    subcenters: Annotated[int, Range(1, 1000)] = 1  # centers a class, of which the nearest counts
    lr: Positive | None = None  # of the centers, for a global batch of 512; None: optim.lr
    weight_decay: Decay | None = None  # of the centers; None: optim.weight_decay
    momentum: Remainder | None = None  # of the centers, 0: none is kept; None: optim.momentum
    centers_dtype: RowDtype = "float32"  # what they are kept in, rounded stochastically
    momentum_dtype: RowDtype = "float32"  # the same of their momentum
    place: Literal["device", "host", "disk"] = "device"  # where centers are kept
    place_path: str = ""  # place=disk: a folder on that disk; empty: that of run.output
    prefetch: Annotated[int, Range(0, 4)] = 2  # steps that centers of another place come ahead
    num_classes: Count | None = None  # None: the largest label of the data + 1
    backend: Literal["auto", "torch", "triton"] = "auto"  # triton: our kernels, Ampere and later

    def __post_init__(self) -> None:
        check_ranges("head", self)
        check(
            not self.random_groups or self.sample_groups > 0,
            "head.random_groups",
            self.random_groups,
            "0 without head.sample_groups",
        )
        rates = {self.sample_rate, *self.sample_rate_from.values()}
        every_class = self.sample_rate == 1.0 and not self.sample_rate_from
        for name in ("sample_count", "sample_groups"):
            value = getattr(self, name)
            expected = (
                f"0 with a sample rate: head.sample_rate={self.sample_rate}, "
                f"head.sample_rate_from={self.sample_rate_from}; set these to 1 and {{}}"
            )
            check(not value or every_class, f"head.{name}", value, expected)
        both = self.sample_count and self.sample_groups
        expected = f"0 with head.sample_groups={self.sample_groups}; set one of them"
        check(not both, "head.sample_count", self.sample_count, expected)

        away = self.hard_negatives and self.place != "device"
        expected = f"device with head.hard_negatives={self.hard_negatives}, or 0 for the latter"
        check(not away, "head.place", self.place, expected)
        if self.expectation_margins:
            without = (
                f"with head.expectation_margin={self.expectation_margin}, "
                f"head.expectation_margin_from={self.expectation_margin_from}; or set these to "
                "null and {}"
            )
            check(self.place == "device", "head.place", self.place, f"device {without}")
            check(self.loss != "uniface", "head.loss", self.loss, f"another loss {without}")
        sampled = self.sample_count > 0 or (0.0 not in rates and rates != {1.0})
        expected = "0 without head.sample_count or a head.sample_rate above 0 and below 1"
        check(
            not self.hard_negatives or sampled, "head.hard_negatives", self.hard_negatives, expected
        )

    def sample_rate_at(self, epoch: int, *, num_classes: int) -> float:
        """The share of the class centers that takes part in the steps of an epoch."""
        if self.sample_count:
            return min(1.0, self.sample_count / num_classes)
        return _at(epoch, self.sample_rate, self.sample_rate_from)

    def expectation_margin_at(self, epoch: int) -> float | None:
        """LVFace's penalty in the steps of an epoch; None: without."""
        return _at(epoch, self.expectation_margin, self.expectation_margin_from)

    @property
    def expectation_margins(self) -> tuple[float, ...]:
        """All that `expectation_margin_at` gives, without None; empty where there is no penalty."""
        margins = (self.expectation_margin, *self.expectation_margin_from.values())
        return tuple(margin for margin in margins if margin is not None)


def _at(epoch: int, first: T, later: Mapping[int, T]) -> T:
    """What is set at an epoch, where `later` changes it from some epochs on."""
    started = [start for start in later if start <= epoch]
    return later[max(started)] if started else first
