"""Bytes that a network's training step reads and writes for an image, counted, not measured:

    python benchmarks/traffic.py [NETWORK ...]

Every operation of forward and backward is taken for a kernel of its own, as on a GPU without a
compiler, that reads its inputs from memory and writes its outputs there, in 16 bits. Beside that
stand the same with model.fused=true, and the convolutions alone. What does not grow with the batch,
such as the weights, is left out.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness import show
from models import Architecture
from models.batch_norm import fuse_batch_norm
from models.cost import without_memory
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


def bytes_an_image(architecture: Architecture, *, fused: bool = False) -> Counter[str]:
    """Of forward and backward in 16 bits, by operation."""

    size = architecture.image_size
    with torch.device("meta"):
        network = architecture.create().train()
    if fused:
        fuse_batch_norm(network)

    def counted(batch: int) -> Counter[str]:
        state = without_memory(network)
        images = torch.empty(batch, 3, size, size, dtype=torch.bfloat16)
        images = images.contiguous(memory_format=torch.channels_last)
        with Traffic() as traffic:
            with torch.autocast("cpu", torch.bfloat16):
                embeddings = functional_call(network, state, (images,))
            embeddings.sum().backward()
        return traffic.bytes

    # The tensors without memory are a CPU's, for which ours is another PReLU.
    with FakeTensorMode(), patch.object(PReLU, "forward", nn.PReLU.forward):
        few, more = counted(2), counted(4)
    return Counter({name: (more[name] - few[name]) // 2 for name in more})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0].rstrip(":"))
    parser.add_argument("networks", nargs="*", default=["iresnet18", "iresnet50", "iresnet100"])
    rows = []
    for name in parser.parse_args().networks:
        plain, fused = (bytes_an_image(Architecture(name), fused=f) for f in (False, True))
        alone = sum(count for kind, count in plain.items() if "convolution" in kind)
        counts = (plain.total(), fused.total(), alone)
        rows.append((name, *(f"{count / 1e6:.0f}" for count in counts)))
    show(("network", "MB an image", "model.fused", "convolutions"), rows)


if __name__ == "__main__":
    main()
