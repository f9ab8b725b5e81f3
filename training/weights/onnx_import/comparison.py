"""Whether two networks embed images alike, as far as float32 can tell."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from models import normalize

BOUND = 1e-5  # of the length of an embedding
_OF_SPREAD = 1e-3  # of what tells it from those of the other images
# Where rounding to float32 does more to a network, as to a very deep one: so many times of that, up
# to so much.
_ROUNDINGS = 4
_MOST = 100
_SIDES = (None, None, 2, 4, 8)  # of the random images before they are made large; None: as they are


class Difference(NamedTuple):
    """How far embeddings are from others of the same images: the largest share, of

    `length`: ‖theirs‖, and of `spread`: ‖theirs - the mean of theirs‖. A constant in all embeddings
    is in their lengths alone, and may be nearly all there is.
    """

    length: float
    spread: float


def difference(ours: Tensor, theirs: Tensor) -> Difference:
    """Of (B, D) and (B, D), B at least 2; infinite for other shapes."""
    if ours.shape != theirs.shape:
        return Difference(float("inf"), float("inf"))
    # In float64 lengths do not overflow.
    ours, theirs = ours.double(), theirs.double()
    apart, centered = (ours - theirs).norm(dim=1), theirs - theirs.mean(dim=0)
    shares = (apart / one.norm(dim=1).clamp_min(1e-30) for one in (theirs, centered))
    return Difference(*(float(share.max()) for share in shares))


def are_alike(found: Difference, network: nn.Module) -> bool:
    """Whether embeddings so far apart may be of one network.

    Args:
        network: that one of them is of; in evaluation mode, on the CPU.
    """
    if _are_within(found, Difference(0.0, 0.0)):
        return True
    return _are_within(found, _rounding(network))


def random_images(size: int) -> Tensor:
    """Noise, coarse and fine, always the same: (B, 3, size, size) uint8."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for side in _SIDES:
        image = torch.rand(1, 3, side or size, side or size, generator=generator) * 255
        made.append(nn.functional.interpolate(image, (size, size), mode="bilinear"))
    return torch.cat(made).to(torch.uint8)


def _are_within(found: Difference, rounding: Difference) -> bool:
    return all(
        one <= min(max(bound, _ROUNDINGS * rounded), _MOST * bound)
        for one, bound, rounded in zip(found, (BOUND, _OF_SPREAD), rounding)
    )


def _rounding(network: Any) -> Difference:
    """How far float32 moves its embeddings."""
    images = normalize(random_images(network.image_size), torch.float64)
    with torch.no_grad():
        exact = copy.deepcopy(network).double()(images)
        return difference(network(images.float()), exact)
