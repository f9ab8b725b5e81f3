"""A CUDA device that need not be there: shapes, dtypes and devices run through a step, no numbers.

It takes a build of torch with CUDA; the others end the process at the first gradient.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from heads.rows import initial
from tests.graph_safety import GraphSafety

DEVICE = torch.device("cuda", 0)

# They work in place and return nothing, so torch has no rule for the shapes that they return.
_IN_PLACE = {torch.ops.aten._fused_sgd_.tensor_lr, torch.ops.aten._fused_adamw_.tensor_lr}

_COMPARISONS = {torch.ops.aten.lt.Scalar: operator.lt, torch.ops.aten.ge.Scalar: operator.ge}


class OtherDeviceError(AssertionError):
    """An operator met or made a tensor that is not on the one device."""


@contextmanager
def fake_cuda() -> Iterator[None]:
    """Tensors on `DEVICE` can be made and hold nothing: for building what then runs in `strict`.

    A module is made outside, on the CPU, and moved here; torch cannot move fake parameters.
    """
    fake = FakeTensorMode(allow_fallback_kernels=False, allow_non_fake_inputs=True)
    with pytest.MonkeyPatch.context() as patch, fake, _BuildTime():
        # Else torch switches autocast and the loss scaler off where there is no GPU.
        patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda *args: True)
        patch.setattr(torch.cuda, "get_device_capability", lambda *args: (8, 0))
        patch.setattr(Tensor, "backward", _backward)
        # The host hashes a seed for them, and tensors that hold nothing have no hash.
        patch.setattr(initial, "initial_pieces", _pieces)
        yield


@contextmanager
def strict() -> Iterator[None]:
    """What runs here stays on the device, has static shapes and reads nothing on the host.

    Raises OtherDeviceError, GraphUnsafeError or torch's own errors otherwise.
    """
    with GraphSafety(), _OneDevice():
        yield


def _pieces(
    first_class: int, count: int, width: int, *, seed: int
) -> Iterator[tuple[slice, Tensor]]:
    yield slice(0, count), torch.empty(count, width)


class _BuildTime(TorchDispatchMode):
    """Optimizers look whether their rate is negative when they are built: it is taken for 0."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and hasattr(args[0], "at_zero"):
            return args[0].at_zero
        result = func(*args, **(kwargs or {}))
        if func in _COMPARISONS:
            result.at_zero = _COMPARISONS[func](0.0, args[1])
        return result


class _OneDevice(TorchDispatchMode):
    """Refuses tensors of other devices, 0-d ones and copies included.

    FakeTensorMode lets these two through; but a CUDA graph would freeze the first, and the second
    wait for the device.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = None if func in _IN_PLACE else func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, result)):
            if isinstance(leaf, Tensor) and leaf.device != DEVICE:
                raise OtherDeviceError(f"{func} has a tensor on {leaf.device}, not on {DEVICE}")
        return result


@torch.no_grad()
def _backward(loss: Tensor) -> None:
    """Tensor.backward of a 0-d loss without torch's engine, which asks the device for its streams.

    The nodes are the same. As the engine does, it brings each gradient to the shape and dtype that
    are expected, and refuses one on another device.
    """
    waiting = {loss.grad_fn: [torch.ones_like(loss)]}
    for node in _parents_first(loss.grad_fn):
        if node not in waiting:
            continue
        # Nodes written in Python are not called, but applied.
        found = getattr(node, "apply", node)(*waiting.pop(node))
        found = found if isinstance(found, tuple) else (found,)
        following = node.next_functions
        if hasattr(node, "apply"):
            # These give a gradient, None, of arguments that are no tensors, which nothing follows.
            found = [grad for grad, needed in zip(found, node.needs_input_grad) if needed]
            following = [one for one in following if one[0] is not None]
        for grad, (target, slot) in zip(found, following):
            if grad is None or target is None:
                continue
            expected = target._input_metadata[slot]
            if grad.device != expected.device:
                raise OtherDeviceError(f"{node.name()} has a gradient on {grad.device}")
            grad = grad.sum_to_size(expected.shape).to(expected.dtype)
            slots = waiting.setdefault(target, [None] * len(target._input_metadata))
            slots[slot] = grad if slots[slot] is None else slots[slot] + grad


def _parents_first(root: Any) -> Iterable[Any]:
    """The nodes of a graph, each after all from which it gets gradients."""
    children_first: dict[Any, None] = {}
    stack = [(root, False)]
    while stack:
        node, children_done = stack.pop()
        if children_done:
            children_first[node] = None
        elif node not in children_first:
            stack.append((node, True))
            stack += [(child, False) for child, _ in node.next_functions if child is not None]
    return reversed(children_first)
