"""What a run uses that its configuration file brought along: margins and recipes of the user's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from heads import MARGINS
from pipeline.augment import RECIPES
from training.config import Config


def own_parts(config: Config) -> dict[str, str]:
    """Setting → name and file, for what is not Facestream's own; a checkpoint keeps it."""
    parts: dict[str, tuple[str, Callable[..., Any]]] = {}
    margin = MARGINS[config.head.loss]
    if not margin.__module__.startswith("heads."):
        parts[f"head.loss={config.head.loss}"] = (margin.__qualname__, margin.bend)
    for entry in config.data.augment:
        name = entry.partition(":")[0]
        apply = RECIPES[name].apply
        if not apply.__module__.startswith("pipeline."):
            parts[f"data.augment={name}"] = (apply.__qualname__, apply)
    return {
        setting: f"{name} of {function.__code__.co_filename}"
        for setting, (name, function) in parts.items()
    }
