"""BatchNorm folded into the layer before it: an eval network with fewer passes over its maps."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import pairwise

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from models.batch_norm import FusedBatchNorm2d
from models.lora import merge_low_rank

_NORMS = (nn.BatchNorm2d, FusedBatchNorm2d, nn.SyncBatchNorm)


def fold_batch_norm(model: nn.Module) -> nn.Module:
    """A copy of `model` in eval mode, each BatchNorm merged into the layer whose output it takes.

    With fixed statistics a BatchNorm is an affine map of every channel, and so is a change of the
    weights before it: embeddings stay the same up to rounding. Low-rank updates are merged first
    (models/lora.py). A module names such pairs in its
    `folds`; in an `nn.Sequential` they are neighbors. A BatchNorm before a zero-padded convolution
    stays: the padding would have to become its shift, and zero is not.

    Args:
        model: a network of `create_model`, in any mode; left unchanged, and not compiled where it
            is. Parameters keep their dtype, device and strides.

    Returns:
        A module that maps images to embeddings as `model.eval()` does; its BatchNorms are
        `nn.Identity` where they were folded, so its state dict fits no other network's.
    """
    folded = merge_low_rank(copy.deepcopy(model)).eval()
    for module in folded.modules():
        for name, norm_name in _pairs(module):
            layer, norm = module.get_submodule(name), module.get_submodule(norm_name)
            linear = isinstance(layer, nn.Linear)
            fuse: Callable[..., nn.Module] = fuse_linear_bn_eval if linear else fuse_conv_bn_eval
            module.set_submodule(name, fuse(layer, norm))
            module.set_submodule(norm_name, nn.Identity().eval())
    return folded.requires_grad_(False)


def _pairs(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of a layer and of the BatchNorm that alone takes what it gives."""
    yield from getattr(module, "folds", ())
    if type(module) is nn.Sequential:  # of others it is not known what they do
        for (name, layer), (norm_name, norm) in pairwise(module._modules.items()):
            plain = type(layer) is nn.Conv2d and not layer._forward_hooks
            # Not a class of its own that does something more, such as timm's with an activation.
            if plain and type(norm) in _NORMS and norm.track_running_stats:
                yield name, norm_name
