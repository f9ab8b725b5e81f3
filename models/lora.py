"""Low-rank updates (LoRA, Hu et al., 2021, arXiv:2106.09685): a layer's weight gets a product of
two thin matrices added, which alone learn. Merged into it, the network is of its own kind again.

Every other tensor keeps its name, so weights from elsewhere fit as they do without updates.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

FACTORS = ("lora_a", "lora_b")  # what they are called, beside the layer's own weight


class _LowRank:
    """A layer whose `weight` is the stored one and scale · lora_b · lora_a.

    Attributes:
        lora_a: (rank, inputs), inputs being those of a linear layer, or kernel × kernel × channels.
        lora_b: (outputs, rank), zero at the start.
    """

    _parameters: dict[str, Any]

    @property
    def weight(self) -> Tensor:
        """As `nn.Linear` and `nn.Conv2d` have it; what reads it elsewhere gets the sum, too."""
        stored = self._parameters["weight"]
        return _updated(stored, self.lora_a, self.lora_b, self.lora_scale)  # type: ignore


class LowRankLinear(_LowRank, nn.Linear):  # type: ignore[override]
    """Made of an `nn.Linear` by `add_low_rank`."""


class LowRankConv2d(_LowRank, nn.Conv2d):  # type: ignore[override]
    """Made of an `nn.Conv2d` by `add_low_rank`."""


_KINDS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: LowRankLinear,
    nn.Conv2d: LowRankConv2d,
}


def layers_for_low_rank(network: nn.Module) -> list[str]:
    """Names of its linear layers and its 1×1 and 3×3 convolutions that see all channels."""
    return [name for name, module in network.named_modules() if _is_fit(module)]


def add_low_rank(network: nn.Module, layers: Iterable[str], *, rank: int, scale: float) -> None:
    """Give these layers updates, in place; the network computes the same until they learn.

    Whether other parameters learn is left as it is.

    Args:
        layers: names from `layers_for_low_rank`.
        rank: of the updates, at most; a layer with fewer inputs or outputs has as many.
        scale: of the products.
    """
    for name in layers:
        layer: Any = network.get_submodule(name)
        assert _is_fit(layer), name
        weight = layer.weight
        outputs, inputs = len(weight), weight[0].numel()
        rank_here = min(rank, outputs, inputs)
        layer.lora_a = nn.Parameter(weight.new_empty(rank_here, inputs))
        layer.lora_b = nn.Parameter(weight.new_zeros(outputs, rank_here))
        nn.init.kaiming_uniform_(layer.lora_a, a=math.sqrt(5))
        layer.lora_scale = scale
        # Its class, and not a module around it, which would be a part of all names.
        layer.__class__ = _KINDS[type(layer)]


def merge_low_rank(network: nn.Module) -> nn.Module:
    """Put the updates into the weights, in place, so that nothing of them is left; returns it."""
    for module in network.modules():
        if isinstance(module, _LowRank):
            layer: Any = module
            weight = nn.Parameter(layer.weight.detach(), requires_grad=False)
            for factor in FACTORS:
                delattr(layer, factor)
            del layer.lora_scale
            layer.__class__ = next(plain for plain, kind in _KINDS.items() if kind is type(layer))
            layer.weight = weight
    return network


def merged_tensors(tensors: Mapping[str, Tensor], *, scale: float) -> dict[str, Tensor]:
    """The same for a state dict, to the bit; one without updates stays as it is."""
    merged = {name: t for name, t in tensors.items() if name.rpartition(".")[2] not in FACTORS}
    for name in tensors:
        layer, _, last = name.rpartition(".")
        if last == FACTORS[0]:
            weight, a, b = (tensors[f"{layer}.{part}"] for part in ("weight", *FACTORS))
            merged[f"{layer}.weight"] = _updated(weight, a, b, scale)
    return merged


def _is_fit(module: nn.Module) -> bool:
    if type(module) is nn.Conv2d:
        return module.groups == 1 and module.kernel_size in ((1, 1), (3, 3))
    return type(module) is nn.Linear  # others may do more with their weight


def _updated(weight: Tensor, lora_a: Tensor, lora_b: Tensor, scale: float) -> Tensor:
    # In 16 bits the product would differ from the one that is merged.
    with torch.autocast(weight.device.type, enabled=False):
        update = lora_b @ lora_a
        if weight.ndim == 4:  # in channels_last, as the stored one is
            _, channels, height, width = weight.shape
            update = update.unflatten(1, (height, width, channels)).permute(0, 3, 1, 2)
        return weight + scale * update
