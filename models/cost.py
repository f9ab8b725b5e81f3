"""What a network costs in work and memory, counted without computing or allocating anything."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from models.architecture import Architecture


def multiply_adds(architecture: Architecture) -> int:
    """Of convolutions and products, attention's included, for one image in evaluation.

    BatchNorm, activations and additions are left out, as most do who publish such numbers.
    """
    size = architecture.image_size
    with torch.device("meta"):
        network = architecture.create().eval()
    with FakeTensorMode(), torch.no_grad():
        state = without_memory(network)
        images = torch.empty(1, 3, size, size)
        with counted_flops() as counter:
            functional_call(network, state, (images,))
    return counter.get_total_flops() // 2


def counted_flops() -> FlopCounterMode:
    """A context that counts those of convolutions and products, two for a multiply-add."""
    return FlopCounterMode(display=False, custom_mapping=_ON_CPUS)


def kept_an_image(architecture: Architecture, dtype: torch.dtype) -> int:
    """Bytes that a training forward keeps for backward with each image more.

    Args:
        dtype: float32, or the 16 bits of autocast.
    """
    size = architecture.image_size
    with torch.device("meta"):
        network = architecture.create().train()

    def kept(batch: int) -> int:
        state = without_memory(network)
        images = torch.empty(batch, 3, size, size, dtype=dtype)
        images = images.contiguous(memory_format=torch.channels_last)

        def forward() -> None:
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                functional_call(network, state, (images,))

        return sum(kept_for_backward(forward, besides=state.values()))

    with FakeTensorMode():
        return (kept(4) - kept(2)) // 2  # what does not grow are copies of the weights


def without_memory(network: nn.Module) -> dict[str, Tensor]:
    """Its parameters and buffers as a CPU's tensors; call it under FakeTensorMode.

    Args:
        network: on any device, the meta device included; left unchanged.
    """
    return {
        name: torch.empty_strided(
            tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu"
        ).requires_grad_(tensor.requires_grad)
        for name, tensor in (*network.named_parameters(), *network.named_buffers())
    }


def kept_for_backward(forward: Callable[[], object], *, besides: Iterable[Tensor]) -> list[int]:
    """Bytes of each storage that `forward` saves for backward, those of `besides` left out."""
    known = {tensor.untyped_storage()._cdata for tensor in besides}
    kept = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            kept[storage._cdata] = storage.nbytes()
        return tensor.detach()  # the tensor itself would keep its graph alive

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return list(kept.values())


def _attention(
    query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], *_: Any, **__: Any
) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(
    grad: tuple[int, ...],
    query: tuple[int, ...],
    key: tuple[int, ...],
    value: tuple[int, ...],
    *_: Any,
    **__: Any,
) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


# The kernels of attention that torch does not count by itself.
_ON_CPUS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
