"""BatchNorm folded into the layers around it: an eval network with fewer passes over its maps."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from models.batch_norm import FusedBatchNorm2d
from models.lora import merge_low_rank
from models.prelu import PReLU
from models.shifted_conv import ShiftedConv2d
from models.winograd import WinogradConv2d

_NORMS = (nn.BatchNorm2d, FusedBatchNorm2d, nn.SyncBatchNorm)


def fold_batch_norm(model: nn.Module, *, run_on: torch.device | None = None) -> nn.Module:
    """A copy of `model` in eval mode, each BatchNorm merged into the layer whose output it takes.

    With fixed statistics a BatchNorm is an affine map of every channel, and so is a change of the
    weights before it: embeddings stay the same up to rounding. Low-rank updates are merged first
    (models/lora.py). A module names such pairs in its `folds`; in an `nn.Sequential` they are
    neighbors. A BatchNorm before a zero-padded convolution, named in `folds_ahead`, stays unless
    the copy is for a CPU: the padding would have to become its shift, and zero is not.

    Args:
        model: a network of `create_model`, in any mode; left unchanged, and not compiled where it
            is. Parameters keep their dtype and strides.
        run_on: the device that the copy is to run on, and is moved to; on a CPU it then makes
            fewer passes and takes less memory, in ways that exporters would write down badly. A
            network on the meta device stays there. None to leave any where it is, also for export.

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
            _replace(module, name, fuse(layer, norm), norm_name)
    if run_on is not None:
        if not any(parameter.is_meta for parameter in folded.parameters()):
            folded = folded.to(run_on)
        if run_on.type == "cpu":
            _spare_passes(folded)
    return folded.requires_grad_(False)


def _pairs(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of a layer and of the BatchNorm that alone takes what it gives."""
    yield from getattr(module, "folds", ())
    if type(module) is nn.Sequential:  # of others it is not known what they do
        for (name, layer), (norm_name, norm) in pairwise(module._modules.items()):
            plain = type(layer) in (nn.Conv2d, WinogradConv2d) and not layer._forward_hooks
            # Not a class of its own that does something more, such as timm's with an activation.
            if plain and type(norm) in _NORMS and norm.track_running_stats:
                yield name, norm_name


def _spare_passes(folded: nn.Module) -> None:
    for module in list(folded.modules()):
        for norm_name, name in getattr(module, "folds_ahead", ()):
            norm, layer = module.get_submodule(norm_name), module.get_submodule(name)
            _replace(module, name, ShiftedConv2d.after(norm, layer), norm_name)
        if isinstance(module, PReLU):
            module.in_place = True


def _replace(module: nn.Module, name: str, layer: nn.Module, norm_name: str) -> None:
    module.set_submodule(name, layer)
    module.set_submodule(norm_name, nn.Identity().eval())
