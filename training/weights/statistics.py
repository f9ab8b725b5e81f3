"""The statistics of BatchNorms that were folded away (onnx_import/affine.py), measured on images.

Such a BatchNorm has mean 0 and variance 1, which are not those of what it is given: in training,
where it takes the batch's own, the network would be another one. Here it gets the mean μ and the
variance σ² of real images, and as weight and bias what makes up for them:

    w · x + b  =  w · √(σ² + ε) · (x - μ) / √(σ² + ε)  +  (b + w · μ)

So in evaluation embeddings stay as they are, and in training they are nearly the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from evaluation.embedding import Load, embed_batches, on_pixels

IMAGES = 256  # of whose pixels every convolution sees thousands
_BATCH = 32


@dataclass
class _Moments:
    """Mean and variance of channels, batch by batch (Chan et al., 1979), float64."""

    count: int = 0
    mean: Tensor | float = 0.0
    squares: Tensor | float = 0.0  # of differences from the mean, summed

    def add(self, x: Tensor) -> None:
        """Of (B, C, ...)."""
        over = [axis for axis in range(x.ndim) if axis != 1]
        var, mean = torch.var_mean(x.float(), dim=over, correction=0)
        added = x.numel() // x.shape[1]
        total, step = self.count + added, mean.double() - self.mean
        self.squares += var.double() * added + step.square() * (self.count * added / total)
        self.mean += step * (added / total)
        self.count = total

    @property
    def variance(self) -> Tensor:
        assert isinstance(self.squares, Tensor)
        return self.squares / self.count


def some_images(load: Load, total: int, *, count: int = IMAGES) -> np.ndarray:
    """Up to `count` of `total` images from all over, without damaged ones: (N, S, S, 3) uint8 RGB.

    Args:
        load: gives the images at some places; see evaluation/embedding.py.
    """
    chosen = np.unique(np.linspace(0, total - 1, count).astype(int)) if total else []
    found = []
    for place in chosen:
        pixels, faults = load(range(place, place + 1))
        if not faults:
            found.append(pixels)
    return np.concatenate(found) if found else np.empty((0, 0, 0, 3), np.uint8)


@torch.no_grad()
def measure_statistics(
    network: nn.Module,
    names: Sequence[str],
    pixels: np.ndarray,
    *,
    device: torch.device,
    progress: str = "",
) -> dict[str, Tensor]:
    """Give BatchNorms the statistics of images, in place; embeddings stay the same up to rounding.

    Args:
        network: of ours, in evaluation mode; it is moved to `device`.
        names: of its BatchNorms that have none.
        pixels: (N, S, S, 3) uint8 RGB, N at least 1.
        progress: a name for a progress bar; none without.

    Returns:
        What was changed of its state dict, on the CPU.
    """
    moments = {name: _Moments() for name in names}
    network = network.to(device)
    hooks = [
        network.get_submodule(name).register_forward_pre_hook(_adds_to(moment))
        for name, moment in moments.items()
    ]
    try:
        batches = embed_batches(
            on_pixels(network, device=device),
            lambda places: (pixels[places.start : places.stop], {}),
            range(len(pixels)),
            device=device,
            batch_size=_BATCH,
            image_size=pixels.shape[1],
            progress=progress,
        )
        for _ in batches:
            pass
    finally:
        for hook in hooks:
            hook.remove()
    changed = {}
    for name, moment in moments.items():
        _change(network.get_submodule(name), moment)
        state = network.get_submodule(name).state_dict()
        changed |= {f"{name}.{key}": t.cpu() for key, t in state.items() if t.is_floating_point()}
    return changed


def _adds_to(moment: _Moments) -> Callable[[nn.Module, Any], None]:
    return lambda module, given: moment.add(given[0])


def _change(norm: Any, moment: _Moments) -> None:
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    shift = norm.bias.double() - norm.running_mean.double() * scale
    norm.running_mean.copy_(moment.mean)
    norm.running_var.copy_(moment.variance)
    norm.weight.copy_(scale * (moment.variance + norm.eps).sqrt())
    norm.bias.copy_(shift + moment.mean * scale)
