"""What operations read and write, counted, not measured.

Every operation is taken for a kernel of its own, as on a GPU without a compiler, that reads its
inputs from memory and writes its outputs there.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.architecture import Architecture
from models.batch_norm import fuse_batch_norm
from models.cost import counted_flops, without_memory
from models.prelu import PReLU

_aten, _ours = torch.ops.aten, torch.ops.facestream
# Inputs that are read a second time: for statistics and sums first, and by the two products of a
# convolution's backward.
_AGAIN: dict[Any, tuple[int, ...]] = {
    _aten.native_batch_norm.default: (0,),
    _aten.native_batch_norm_backward.default: (0, 1),
    _aten.convolution_backward.default: (0,),
    _ours.batch_norm.default: (0,),
    _ours.batch_norm_backward.default: (0, 1),
}
# New memory, which nothing reads or writes yet.
_NEW = (
    _aten.empty,
    _aten.empty_like,
    _aten.empty_strided,
    _aten.new_empty,
    _aten.new_empty_strided,
)
# Inputs that are not read: written over whole, or alike in shape alone.
_UNREAD: dict[Any, tuple[int, ...]] = {
    _aten.copy_: (0,),
    _aten.fill_: (0,),
    _aten.zero_: (0,),
    _aten.full_like: (0,),
    _aten.ones_like: (0,),
    _aten.zeros_like: (0,),
    _aten.new_full: (0,),
    _aten.new_ones: (0,),
    _aten.new_zeros: (0,),
}
# Of these only what the indices name is touched, as much as the other side of the copy holds.
_PICKING = (_aten.index_select, _aten.gather)
_PUTTING = (_aten.index_copy_, _aten.scatter_)


class Traffic(TorchDispatchMode):
    """Bytes read and written by what runs inside, by operation; views and new memory are none.

    Attributes:
        bytes, calls: by the operation's name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.namespace != "prim" and not (func.is_view or func.overloadpacket in _NEW):
            name = func.overloadpacket.__name__
            self.calls[name] += 1
            self.bytes[name] += _moved(func, args, kwargs or {}, result)
        return result


def _moved(func: Any, args: Any, kwargs: Any, result: Any) -> int:
    """Bytes that a kernel for this operation reads and writes."""
    outputs = sum(map(_size, _tensors(result)))
    if func.overloadpacket in _PICKING:
        return sum(map(_size, _tensors(args[1:]))) + 2 * outputs
    if func.overloadpacket in _PUTTING:
        index, source = args[2:4]
        put = _size(source) if isinstance(source, Tensor) else index.numel() * args[0].itemsize
        return _size(index) + 2 * put
    unread = _UNREAD.get(func.overloadpacket, ())
    read = [arg for place, arg in enumerate(args) if place not in unread]
    inputs = {name: value for name, value in kwargs.items() if name != "out"}
    again = [args[place] for place in _AGAIN.get(func, ())]
    return outputs + sum(map(_size, _tensors((read, inputs, again))))


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _size(tensor: Tensor) -> int:
    """Bytes of what differs: a broadcast value counts once."""
    return tensor.element_size() * (
        torch.Size(n for n, stride in zip(tensor.shape, tensor.stride()) if stride).numel()
    )


class StepCounts(NamedTuple):
    """What a training step of a network takes in 16 bits: forward, backward, no optimizer.

    Attributes:
        flops: of convolutions and products, two for a multiply-add, for each image.
        bytes: read and written for each image, by operation.
        calls: operations, however many images; each is a kernel or more.
    """

    flops: int
    bytes: Counter[str]
    calls: int


def count_step(network: nn.Module, image_size: int) -> StepCounts:
    """Forward and backward as the network is: with checkpointed blocks, what runs again, too.

    What does not grow with the batch, such as the weights, is left out.

    Args:
        network: in train mode, on the meta device.
    """

    def counted(batch: int) -> tuple[int, Traffic]:
        step = _ForwardBackward(network)
        images = torch.empty(batch, 3, image_size, image_size, dtype=torch.bfloat16)
        images = images.contiguous(memory_format=torch.channels_last)
        state = without_memory(step)
        with counted_flops() as flops, Traffic() as traffic:
            functional_call(step, state, (images,))
        return flops.get_total_flops(), traffic

    # The tensors without memory are a CPU's, for which ours is another PReLU.
    with FakeTensorMode(), patch.object(PReLU, "forward", nn.PReLU.forward):
        (few_flops, few), (more_flops, more) = counted(2), counted(4)
    growth = {name: (more.bytes[name] - few.bytes[name]) // 2 for name in more.bytes}
    return StepCounts((more_flops - few_flops) // 2, Counter(growth), more.calls.total())


class _ForwardBackward(nn.Module):
    """Both while the network has the tensors that a functional call gives it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            embeddings = self.network(images)
        embeddings.sum().backward()


def bytes_an_image(architecture: Architecture, *, fused: bool = False) -> Counter[str]:
    """Of forward and backward in 16 bits, by operation."""
    with torch.device("meta"):
        network = architecture.create().train()
    if fused:
        fuse_batch_norm(network)
    return count_step(network, architecture.image_size).bytes
