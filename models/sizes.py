"""What all networks ask of the sizes that they are built for, and of the images that they get."""

from __future__ import annotations

from torch import Tensor

from facestream import UserError


def check_sizes(*, embedding_dim: int, image_size: int, multiple: int = 1, least: int = 1) -> None:
    """Raise UserError, naming the argument, for a size that is none.

    Args:
        multiple: of which the image's height and width must be one.
        least: what they must be at least.
    """
    if embedding_dim < 1:
        raise UserError(f"embedding_dim is {embedding_dim}: it must be at least 1")
    if image_size < 1 or image_size % multiple != 0:
        raise UserError(f"image_size is {image_size}: it must be a positive multiple of {multiple}")
    if image_size < least:
        raise UserError(f"image_size is {image_size}: it must be at least {least}")


def check_width(width: float) -> None:
    """Raise UserError for a factor on the channels that does not leave multiples of 16 of 64."""
    # With 8 channels torch 2.13's 1x1 convolutions of stride 2 write past their memory on CPUs.
    if width <= 0 or (64 * width) % 16 != 0:
        raise UserError(
            f"width is {width}, which makes {64 * width:g} channels of the first 64: choose a "
            "positive multiple of 0.25, so that every channel count is a multiple of 16"
        )


def check_share(name: str, value: float) -> None:
    """Raise UserError for what is no probability or share in [0, 1)."""
    if not 0.0 <= value < 1.0:
        raise UserError(f"{name} is {value}: it must be in [0, 1)")


def check_images(images: Tensor, size: int) -> None:
    """Raise ValueError for what is not (B, 3, size, size) in a floating dtype."""
    if images.shape[1:] != (3, size, size) or not images.is_floating_point():
        raise ValueError(
            f"found images of shape {tuple(images.shape)} and {images.dtype}, expected "
            f"(B, 3, {size}, {size}) in a floating dtype: normalize them (models.normalize) "
            "and create the model with their image_size"
        )
