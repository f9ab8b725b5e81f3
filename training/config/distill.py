"""Settings ``distill.*``: the teacher, and how much its loss counts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from models import MODELS, is_network
from training.config.checks import check, check_ranges
from training.setting_range import Amount


@dataclass(frozen=True)
class DistillConfig:
    """A frozen teacher whose embeddings the student's are drawn to; see training/distill.

    `cached` takes them from what tools/cache_teacher.py wrote: they cost nothing then, but are
    those of the images as stored. A flip hardly changes an embedding; stronger augmentation does.
    """

    teacher: str = ""  # a run, checkpoint, .pth, .pt, .safetensors or .onnx; none: off
    model: str = ""  # the name of its network, if that is to be checked
    input: dict[str, Any] = field(default_factory=dict)  # what a file takes, see models/input.py
    loss: Literal["cosine", "l2"] = "cosine"  # between the embeddings of both
    weight: Amount = 1.0  # of this loss beside the head's, at the first step
    weight_end: Amount | None = None  # at the last step, linear in between; none: the same
    cached: bool = False  # take embeddings from what tools/cache_teacher.py wrote

    def __post_init__(self) -> None:
        named = bool(self.teacher)
        check(named or not self.cached, "distill.cached", self.cached, "false without a teacher")
        check_ranges("distill", self)
        allowed = f"none, or the name of distill.teacher's network, one of {sorted(MODELS)}"
        check(not self.model or is_network(self.model), "distill.model", self.model, allowed)

    @property
    def last_weight(self) -> float:
        """The weight at the last step."""
        return self.weight if self.weight_end is None else self.weight_end
