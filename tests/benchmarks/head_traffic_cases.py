"""benchmarks.head_traffic against what the kernels do: every load and store, interpreted.

tests/heads/passes/kernels/test_kernels.py runs this file in a process of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy
import pytest
import torch
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpretedFunction

from benchmarks.compiled_kernels import Launch
from benchmarks.head_traffic import Moved, moved
from heads import ArcFace, PartialFC

Addresses = list[tuple[numpy.ndarray, int]]


class Watched:
    """Addresses that the programs of one launch read and write, with the size of what is there."""

    def __init__(self) -> None:
        self.read: Addresses = []
        self.written: Addresses = []

    def moved(self) -> Moved:
        asked = [addresses.size * size for addresses, size in (*self.read, *self.written)]
        return Moved(_different(self.read), _different(self.written), sum(asked))


def _different(accesses: Addresses) -> int:
    by_size: dict[int, list[numpy.ndarray]] = {}
    for addresses, size in accesses:
        by_size.setdefault(size, []).append(addresses)
    return sum(size * len(numpy.unique(numpy.concatenate(a))) for size, a in by_size.items())


@contextmanager
def watched_launches() -> Iterator[list[tuple[Launch, Watched]]]:
    launches: list[tuple[Launch, Watched]] = []
    run = InterpretedFunction.run
    builder = interpreter.InterpreterBuilder
    load, store = builder.create_masked_load, builder.create_masked_store

    def watch_run(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        named = {name: options[name] for name in kernel.arg_names if name in options}
        arguments = dict(zip(kernel.arg_names, args)) | named
        launches.append((Launch(kernel, arguments, options, grid), Watched()))
        run(kernel, *args, grid=grid, warmup=warmup, **options)

    def note(kind: str, pointers: Any, mask: Any) -> None:
        addresses = pointers.data[numpy.broadcast_to(mask.data, pointers.data.shape)].ravel()
        size = pointers.get_element_ty().primitive_bitwidth // 8
        getattr(launches[-1][1], kind).append((addresses, size))

    def watch_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        note("read", pointers, mask)
        return load(self, pointers, mask, *rest)

    def watch_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        note("written", pointers, mask)
        return store(self, pointers, value, mask, *rest)

    with (
        patch.object(InterpretedFunction, "run", watch_run),
        patch.object(builder, "create_masked_load", watch_load),
        patch.object(builder, "create_masked_store", watch_store),
    ):
        yield launches


OPTIONS = [
    {},
    {"sample_rate": 0.6},
    {"subcenters": 2, "momentum": 0.0},
    {"subcenters": 2, "centers_dtype": torch.float8_e4m3fn, "momentum_dtype": torch.bfloat16},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("forwards", [1, 2])
def test_every_kernel_moves_what_is_counted(forwards: int, options: dict[str, Any]) -> None:
    """In sizes that fill no tile; two forwards add their gradients up."""
    head = PartialFC(*(70, 20, ArcFace()), compute_dtype=torch.float16, backend="triton", **options)
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 70, (forwards, 18), generator=generator)
    if forwards > 1:
        head.begin_step(labels)
    with watched_launches() as launches:
        for ids in labels:
            head(torch.randn(18, 20, generator=generator), ids)
        head.step(0.1)
    assert len(launches) == 5 * forwards + 1
    for launch, watched in launches:
        assert moved(launch) == watched.moved(), launch.kernel.fn.__name__
