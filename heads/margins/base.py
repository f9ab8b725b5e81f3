"""What a margin is given, what it answers, and what all margins share.

A margin sees every row of the global batch at once (the target cosines and the feature norms) and
answers with the margined cosines and their slopes; the logit is `scale` times the margined cosine.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from facestream import UserError
from heads.negatives import Negatives
from heads.parameters import check

GRADIENTS = ("exact", "straight_through")
_NOTHING = torch.empty(0)

# The column, in [0, 1], that a row's loss is multiplied by.
WEIGHT = "weight"
# torch.compile takes no MappingProxyType.
NO_COLUMNS: Mapping[str, Tensor] = {}


class StepContext(NamedTuple):
    """What a margin may know beside cosines and norms; all on their device.

    Attributes:
        factor: 0-d, in [0, 1]: the share of the margin in force (a margin may grow during
            training). At 0 the target cosine is left as it is.
        state: (k,) the margin's running values before this step; k is len(margin.initial_state()).
        key: 0-d int64, this step's counter key for heads.counter.
        index: (N,) int64, each row's place in the global batch, the same for any number of ranks.
        learned: (k,) what the margin learns beside the centers; k is len(margin.initial_learned()).
        columns: (N,) of each column that the head is given, by name; those of the margin's own
            `columns` are there.
    """

    factor: Tensor
    state: Tensor
    key: Tensor
    index: Tensor  # type: ignore[assignment]  # shadows the tuple's own method
    learned: Tensor = _NOTHING
    columns: Mapping[str, Tensor] = NO_COLUMNS

    def to(self, dtype: torch.dtype) -> StepContext:
        """The same with factor, state, what is learned and columns in `dtype`."""
        names = ("factor", "state", "learned")
        columns = {name: values.to(dtype) for name, values in self.columns.items()}
        converted = {name: getattr(self, name).to(dtype) for name in names}
        return self._replace(**converted, columns=columns)


class Target(NamedTuple):
    """The target after the margin, in cosine units (the scale is not yet applied).

    All in the cosines' dtype. None: the margin keeps no state, or leaves the norm alone.

    Attributes:
        cosine: (N,) margined target, at most 1; below -1 where a margin is subtracted.
        slope: (N,) d cosine / d (cosine before the margin); never negative. None from `Margin.bend`
            alone: autograd finds it then.
        state: (k,) running values after this step, NaN where the batch held NaN. The head keeps the
            old ones then.
        norm_slope: (N,) d cosine / d norm.
        penalty: (N,) added to each row's loss; `scale` does not apply to it.
        penalty_slope: (N,) d penalty / d norm.
    """

    cosine: Tensor
    slope: Tensor | None = None
    state: Tensor | None = None
    norm_slope: Tensor | None = None
    penalty: Tensor | None = None
    penalty_slope: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Margin(ABC):
    """A margin on the target cosine.

    Every margin's target rises, or stays, as the cosine rises, unless its docstring says where not.
    The norm gets a gradient from MagFace alone.

    Args:
        scale: the softmax's inverse temperature, finite and > 0.
        gradient: "exact" is the derivative of the margined cosine. "straight_through" takes the
            slope to be 1, which is what arcface_torch computes, its arccos and cos standing under
            no_grad; accuracies quoted from arcface_torch were trained so. Those of the papers' own
            code were trained with the derivative.
        filter_above: inter-class filtering, in cosine units, in (-1, 1]: negatives with a larger
            cosine leave the softmax. None: none do (arcface_torch writes 0 for that).

    Raises:
        UserError: when built with a parameter outside its range.
    """

    scale: float = 64.0
    gradient: str = "exact"
    filter_above: float | None = None

    # True where negatives() reads the target cosines, which the head then gathers beforehand.
    uses_target_for_negatives: ClassVar[bool] = False
    # Names of values of each row, such as "quality", that bend() finds in its context's columns.
    columns: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check(self, "scale", lambda scale: scale > 0, "(0, inf)")
        if self.gradient not in GRADIENTS:
            raise UserError(
                f"{type(self).__name__}: gradient={self.gradient!r}, expected one of {GRADIENTS}"
            )
        if self.filter_above is not None:
            check(self, "filter_above", lambda cosine: -1 < cosine <= 1, "(-1, 1], or None")

    def __call__(self, cosine: Tensor, norms: Tensor, context: StepContext) -> Target:
        """(N,) target cosines and detached (N,) feature norms of one dtype → Target.

        Cosines beyond [-1, 1], where rounding leaves them, are taken as the nearer end; NaN stays.
        """
        assert context.state.shape == (len(self.initial_state()),), "the state is another margin's"
        cosine, context = cosine.clamp(-1.0, 1.0), context.to(cosine.dtype)
        target = self.bend(cosine, norms, context)
        if not isinstance(target, Target):
            raise UserError(
                f"{type(self).__name__}.bend() returns a {type(target).__name__}, expected a "
                "Target: return Target(cosine) with the cosines after the margin"
            )
        if self.gradient == "straight_through":
            return target._replace(slope=torch.ones_like(cosine))
        if target.slope is None:
            return target._replace(slope=self._slope(cosine, norms, context))
        return target

    def initial_state(self) -> tuple[float, ...]:
        """The running values before the first step; empty for most margins."""
        return ()

    def initial_learned(self, classes: float) -> tuple[float, ...]:
        """What is learned beside the centers, before the first step; empty for most margins.

        Args:
            classes: of a step, on all ranks together; at least 1.
        """
        return ()

    def negatives(self, cosine: Tensor | None, context: StepContext) -> Negatives:
        """The hook for this step's negatives.

        Args:
            cosine: (N,) target cosines; None will do where `uses_target_for_negatives` is False.
        """
        return Negatives(filter_above=math.inf if self.filter_above is None else self.filter_above)

    @abstractmethod
    def bend(self, cosine: Tensor, norms: Tensor, context: StepContext) -> Target:
        """The margin proper: what becomes of the (N,) target cosines, which lie in [-1, 1].

        A pure function of its arguments, in operations that a CUDA graph can hold. Where it leaves
        the slope out, a row's cosine must not depend on other rows' but through what is detached.
        """

    def _slope(self, cosine: Tensor, norms: Tensor, context: StepContext) -> Tensor:
        """(N,) derivative of `bend`'s cosines, by autograd."""
        # Held off the ends, where that of an angle is infinite; it multiplies a zero there.
        least = torch.finfo(cosine.dtype).eps
        with torch.inference_mode(False), torch.enable_grad():
            # Copies, for autograd takes no tensors that inference mode has made.
            names = ("factor", "state", "key", "index", "learned")
            copies = {name: getattr(context, name).clone() for name in names}
            columns = {name: values.clone() for name, values in context.columns.items()}
            context = context._replace(**copies, columns=columns)
            held = cosine.clone().clamp_(least - 1, 1 - least).requires_grad_()
            bent = self.bend(held, norms.clone(), context).cosine
            (slope,) = torch.autograd.grad(bent.sum(), held)
        return slope
