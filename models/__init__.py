"""Networks from face images to embeddings, made by name with `create_model`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from facestream import UserError
from models.fold import fold_batch_norm
from models.iresnet import BLOCKS, IResNet
from models.normalize import normalize

__all__ = ["MODELS", "create_model", "fold_batch_norm", "normalize"]

# A network's name and what builds it from (num_features, dropout, width, image_size) by keyword.
MODELS: dict[str, Callable[..., nn.Module]] = {
    **{name: partial(IResNet, blocks) for name, blocks in BLOCKS.items()},
}


def create_model(
    name: str,
    *,
    num_features: int = 512,
    dropout: float = 0.0,
    width: float = 1.0,
    image_size: int = 112,
) -> nn.Module:
    """Build the network called `name`, freshly initialized, its weights in channels_last.

    Args:
        name: a key of `MODELS`, such as "iresnet50".
        num_features: D, the length of an embedding.
        dropout: probability of dropping an input of the last fully connected layer, in [0, 1).
        width: factor on every channel count; it must leave whole multiples of 16.
        image_size: height and width of the images in pixels, a multiple of 16.

    Returns:
        A module mapping normalized images (B, 3, image_size, image_size), as `normalize` gives
        them, to embeddings (B, num_features) float32, not L2-normalized.

    Raises:
        ValueError: unknown name, or a value outside the ranges above.
    """
    if name not in MODELS:
        raise UserError(f"unknown model {name!r}: choose one of {', '.join(MODELS)}")
    model = MODELS[name](
        num_features=num_features, dropout=dropout, width=width, image_size=image_size
    )
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
