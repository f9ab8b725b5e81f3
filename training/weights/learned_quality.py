"""CR-FIQA's quality of an image, as a checkpoint has learned it beside the embeddings."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from facestream import UserError
from heads import create_extra_terms, create_margin
from training.saving.metadata import load_state
from training.saving.names import HEAD
from training.saving.reading import SavedCheckpoint, SavedFile

_LEARNED = f"{HEAD}.learned"
_TERM = "classifiability"


class QualityError(UserError):
    """A model that has learned no quality."""


class LearnedQuality(NamedTuple):
    """The quality weight·x + bias of an embedding x as the network gives it, not normalized.

    Attributes:
        weight: (D,) float32, on the CPU.
        bias: of any embedding.
    """

    weight: Tensor
    bias: float

    def of(self, embeddings: Tensor, *, summed: bool) -> Tensor:
        """(N,) of (N, D) embeddings; greater is better.

        Args:
            summed: the mirror image's embedding is added: the mean of both is what comes out.
        """
        weight = self.weight.to(embeddings)
        # No matrix product, which an exporter would write in int8.
        return (embeddings * (weight / 2 if summed else weight)).sum(1) + self.bias

    @property
    def scale(self) -> float:
        """How far the quality of an embedding of length 1 can be from the bias."""
        return float(self.weight.norm())


def learned_quality(saved: SavedCheckpoint | SavedFile, *, called: str) -> LearnedQuality:
    """What `saved` has learned; where there is a process group, call it on every rank.

    Args:
        called: the model, as its user named it.

    Raises QualityError where the term was not trained, or is not in what was named.
    """
    if isinstance(saved, SavedFile):
        raise QualityError(
            f"{called} is a file of the network, and its learned quality is read from a "
            f"checkpoint of its run, if that had 'head.extra_terms={{{_TERM}: {{}}}}': name the "
            "run, or RUN@best"
        )
    head, shapes = saved.config.head, saved.shapes()
    names = list(head.extra_terms)
    if _TERM not in names or _LEARNED not in shapes:
        found = f"head.extra_terms={{{', '.join(names)}}}"
        raise QualityError(
            f"{called} has learned no quality: it was trained with {found}, expected {_TERM} among "
            f"them. Train with 'head.extra_terms={{{_TERM}: {{}}}}'"
        )
    learned = torch.empty(shapes[_LEARNED])
    load_state({_LEARNED: learned}, saved.path, alone=True)
    dim = saved.architecture.embedding_dim
    before = [create_margin(head.loss, **head.loss_args).initial_learned(1.0)]
    terms = create_extra_terms(head.extra_terms)
    before += [term.initial_learned(dim) for term in terms[: names.index(_TERM)]]
    own = learned[sum(map(len, before)) :]
    return LearnedQuality(own[:dim] / math.sqrt(dim), float(own[dim]))
