"""What a run uses that its configuration file brought along: margins, recipes, networks."""

from __future__ import annotations

from heads import MARGINS, OWN_MARGINS
from models import MODELS, OWN_MODELS
from pipeline.augment import OWN_RECIPES, RECIPES
from training.config import Config


def own_parts(config: Config) -> dict[str, str]:
    """Setting → name and file, for what is not Facestream's own; a checkpoint keeps it."""
    parts, loss = {}, config.head.loss
    if loss in OWN_MARGINS:
        parts[f"head.loss={loss}"] = f"{MARGINS[loss].__qualname__} of {OWN_MARGINS[loss]}"
    if (name := config.model.name) in OWN_MODELS:
        parts[f"model.name={name}"] = f"{MODELS[name].builder.__qualname__} of {OWN_MODELS[name]}"
    for entry in config.data.augment:
        name = entry.partition(":")[0]
        if name in OWN_RECIPES:
            function = RECIPES[name].apply.__qualname__
            parts[f"data.augment={name}"] = f"{function} of {OWN_RECIPES[name]}"
    return parts
