"""Networks from face images to embeddings, made by name with `create_model`."""

from __future__ import annotations

from models.architecture import (
    MODELS,
    OWN_MODELS,
    Architecture,
    Family,
    create_model,
    find_family,
    is_network,
    register_network,
)
from models.fold import fold_batch_norm
from models.normalize import normalize

__all__ = [
    "MODELS",
    "OWN_MODELS",
    "Architecture",
    "Family",
    "create_model",
    "find_family",
    "fold_batch_norm",
    "is_network",
    "normalize",
    "register_network",
]
