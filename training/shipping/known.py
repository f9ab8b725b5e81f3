"""What saved weights say of their training, for the card of what is made of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.records.manifest import UNKNOWN
from training.frozen.card import TrainingData, read_card
from training.saving.reading import SavedCheckpoint, SavedFile

_SECTIONS = ("model", "head", "optim")  # of a configuration; others have folders in them


def data_of(saved: SavedCheckpoint | SavedFile) -> Sequence[TrainingData]:
    """The training sets; none where nothing says them. Raises CardError."""
    if isinstance(saved, SavedCheckpoint):
        known = [TrainingData(**entry) for entry in saved.about.get("data", [])]
        if "imported from" in saved.about["facts"]:  # its configuration is not what trained it
            return [one for one in known if one != TrainingData(UNKNOWN)]
        return known
    card = read_card(saved.path)
    return card.data if card else []


def config_of(saved: SavedCheckpoint | SavedFile) -> dict[str, Any]:
    """How it was trained, without the folders of whoever did; empty where nothing says it."""
    if isinstance(saved, SavedCheckpoint):
        values = saved.config.as_dict()
        return {section: values[section] for section in _SECTIONS}
    card = read_card(saved.path)
    return dict(card.config) if card else {}
