"""What a run uses that its configuration file brought along: margins and recipes of the user's."""

from __future__ import annotations

from heads import MARGINS, OWN_MARGINS
from pipeline.augment import OWN_RECIPES, RECIPES
from training.config import Config


def own_parts(config: Config) -> dict[str, str]:
    """Setting → name and file, for what is not Facestream's own; a checkpoint keeps it."""
    parts, loss = {}, config.head.loss
    if loss in OWN_MARGINS:
        parts[f"head.loss={loss}"] = f"{MARGINS[loss].__qualname__} of {OWN_MARGINS[loss]}"
    for entry in config.data.augment:
        name = entry.partition(":")[0]
        if name in OWN_RECIPES:
            function = RECIPES[name].apply.__qualname__
            parts[f"data.augment={name}"] = f"{function} of {OWN_RECIPES[name]}"
    return parts
