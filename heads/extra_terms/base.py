"""What an extra term of the loss is given, what it answers, and what all have in common.

A margin is a function of the target cosine. What is not (a loss between the images of a batch, a
regression beside the classes) is a term of its own, added to the margin's mean. It is given the
whole global batch, and answers for this rank's rows of it:

- its share of the loss and of the gradient of what it learns, which the head adds up over the
  ranks in one small collective for all terms, so that the sum is that of one process on the whole
  batch;
- the gradient of this rank's embeddings, of the whole term. So a loss over pairs counts each of
  them from both ends.

The gradients are computed on the way forward, as the head's are: by hand, in operations that a
CUDA graph can hold. A term keeps no tensors. What it learns are a few numbers in the head's
`learned`, moved as the centers are; they are in its state, and stay where a step is skipped.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor

from heads.parameters import check


class TermInput(NamedTuple):
    """The global batch of G rows, in the order of the ranks; floats of one dtype.

    Attributes:
        norms: (G,) lengths of the embeddings.
        unit: (G, D) embeddings of unit length.
        labels: (G,) int64 global class ids.
        mine: which B rows are this rank's.
        target: (G,) cosine to the own class's center, before the margin.
        largest_negative: (G,) largest cosine to another class's center that the row sees in this
            step, on any rank; -inf where it sees none. None unless a term `uses_largest_negative`.
        learned: (k,) what the term learns.
        columns: (G,) of each column that the head is given, by name.
    """

    norms: Tensor
    unit: Tensor
    labels: Tensor
    mine: slice
    target: Tensor
    largest_negative: Tensor | None
    learned: Tensor
    columns: Mapping[str, Tensor]


class TermShare(NamedTuple):
    """This rank's part of a term, weight included.

    Attributes:
        loss: 0-d; all ranks' add up to the term's mean over the global batch.
        embeddings: (B, D) d term / d this rank's embeddings, of all ranks' losses.
        learned: (k,) share of the gradient of what is learned.
        start: (k,) share of where it starts, which counts in the first step alone; NaN for what has
            started.
    """

    loss: Tensor
    embeddings: Tensor
    learned: Tensor
    start: Tensor


@dataclass(frozen=True, kw_only=True)
class ExtraTerm(ABC):
    """A term of the loss beside the margin's.

    Args:
        weight: what the term is multiplied by, finite and > 0.

    Raises:
        UserError: when built with a parameter outside its range.
    """

    weight: float = 1.0

    uses_largest_negative: ClassVar[bool] = False
    # True where a batch in parts would have another loss, which gradient accumulation then refuses.
    needs_whole_batch: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check(self, "weight", lambda weight: weight > 0, "(0, inf)")

    def initial_learned(self, embedding_dim: int) -> tuple[float, ...]:
        """What is learned, before the first step."""
        return ()

    def scratch(self, batch: int, global_batch: int) -> int:
        """Numbers that a step holds at its peak, for this rank's `batch` rows of `global_batch`."""
        return 0

    @abstractmethod
    def share(self, given: TermInput) -> TermShare:
        """This rank's part. A pure function, with no collective, and no wait for the device."""
