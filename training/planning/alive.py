"""What of a network's tensors is alive at once, found on tensors that have no memory."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from models import fold_batch_norm, normalize
from models.cost import kept_for_backward, without_memory
from training.step.precision import Precision

_LARGE = 32 << 20  # bytes: the largest block that glibc's malloc may keep


class Blocks(NamedTuple):
    """Bytes in small blocks of memory and in large ones.

    glibc gives large blocks back to the system when they are free and keeps most of the small ones
    for the next that are small: one kind hardly stands in for the other.
    """

    small: int
    large: int

    @classmethod
    def of(cls, sizes: Iterable[int]) -> Blocks:
        sizes = list(sizes)
        large = sum(size for size in sizes if size >= _LARGE)
        return cls(sum(sizes) - large, large)

    def beyond(self, others: Blocks) -> int:
        """Bytes that are needed where there were `others` before."""
        returned = max(0, others.small - self.small) // 4  # measured
        more_small = max(0, self.small - others.small)
        return more_small + max(0, self.large - others.large - returned)


class Living(TorchDispatchMode):
    """Counts the bytes of tensors that are alive, as operators make them; `peak` is the most."""

    def __init__(self) -> None:
        super().__init__()
        self._known = weakref.WeakSet()
        self.forget()

    @property
    def peak(self) -> Blocks:
        return Blocks(self._most[False], self._most[True])

    def forget(self) -> None:
        """Count only what is made from here on."""
        self._alive, self._most = [0, 0], [0, 0]  # small blocks, large ones

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in pytree.tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        kind = size >= _LARGE
        self._alive[kind] += size
        self._most[kind] = max(self._most[kind], self._alive[kind])
        weakref.finalize(storage, self._end, size)

    def _end(self, size: int) -> None:
        self._alive[size >= _LARGE] -= size


def blocks_of_training(
    backbone: nn.Module, *, batch: int, image_size: int, precision: Precision
) -> Blocks:
    """What a training forward of `batch` images keeps for backward.

    Parameters aside, but with their narrow copies under autocast. The forward runs on tensors that
    have no memory, as on a CPU: other devices keep the same.

    Args:
        backbone: in train mode, on any device, the meta device included; left unchanged.
    """
    with FakeTensorMode():
        state = without_memory(backbone)
        shape = (batch, image_size, image_size, 3)
        images = torch.empty(shape, dtype=torch.uint8, device="cpu").permute(0, 3, 1, 2)

        def forward() -> Tensor:
            with precision.autocast(images.device):
                pixels = normalize(images, precision.compute_dtype)
                return torch.func.functional_call(backbone, state, (pixels,))

        return Blocks.of(kept_for_backward(forward, besides=state.values()))


def blocks_run_again(
    backbone: nn.Module, *, batch: int, image_size: int, precision: Precision
) -> Blocks:
    """What is alive at once, at most, in a forward and backward whose blocks run again in backward.

    Parameters and their gradients aside.
    """
    with FakeTensorMode(), Living() as living:
        step = _ForwardBackward(backbone)
        state = without_memory(step)
        for parameter in state.values():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(_forget_gradient)
        living.forget()
        images = torch.empty((batch, image_size, image_size, 3), dtype=torch.uint8, device="cpu")
        pixels = normalize(images.permute(0, 3, 1, 2), precision.compute_dtype)
        torch.func.functional_call(step, state, (pixels, precision))
    return living.peak


class _ForwardBackward(nn.Module):
    """Both while the network has the tensors that a functional call gives it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor, precision: Precision) -> None:
        with precision.autocast(pixels.device):
            embeddings = self.network(pixels)
        embeddings.sum().backward()


def _forget_gradient(parameter: Tensor) -> None:
    parameter.grad = None


def blocks_of_inference(
    network: nn.Module, *, batch: int, image_size: int, precision: Precision, run_on: torch.device
) -> Blocks:
    """What is alive at once, at most, in a forward of `batch` images without a gradient.

    Of the network as it is folded for the device. Parameters aside.

    Args:
        network: in any mode, on the meta device; left unchanged.
    """
    with torch.device("meta"):
        folded = fold_batch_norm(network, run_on=run_on)
    with FakeTensorMode(), Living() as living, torch.no_grad():
        state = without_memory(folded)
        living.forget()
        images = torch.empty((batch, image_size, image_size, 3), dtype=torch.uint8, device="cpu")
        with precision.autocast(images.device):
            pixels = normalize(images.permute(0, 3, 1, 2), precision.compute_dtype)
            torch.func.functional_call(folded, state, (pixels,))
    return living.peak
