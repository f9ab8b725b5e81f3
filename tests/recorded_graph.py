"""CUDA graphs acted out on the CPU: operators recorded once, then run again on the same memory.

Whatever a function decides on the host or reads from it is frozen at the recording, as in a CUDA
graph; so a function that replays rightly here leans on none of that. Unlike a CUDA graph, this runs
the function while it records it, and keeps alive what it read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class RecordedGraph:
    """Stands in for torch.cuda.CUDAGraph."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, tuple, dict, Any]] = []

    @torch.no_grad()  # what was recorded is below autograd, backward included
    def replay(self) -> None:
        for function, args, kwargs, results in self.calls:
            again = function(*args, **kwargs)
            for old, new in zip(tree_leaves(results), tree_leaves(again)):
                # A view, or what was written in place, is there already.
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class _Recorder(TorchDispatchMode):
    def __init__(self, graph: RecordedGraph) -> None:
        super().__init__()
        self._graph = graph

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        self._graph.calls.append((func, args, kwargs or {}, results))
        return results


class _Stream:
    def wait_stream(self, other: _Stream) -> None:
        """Everything is in order on a CPU."""


class _Event:
    def record(self, stream: _Stream) -> None:
        """What was asked for is done by now."""

    def synchronize(self) -> None:
        """The same."""


class RecordedGraphs:
    """Stands in for torch.cuda. recordings: how many began.

    failure: what recording fails with, from the first to the last-th of them.
    """

    CUDAGraph, Stream, Event = RecordedGraph, _Stream, _Event

    def __init__(self, failure: str = "", *, last: int = 0) -> None:
        self.failure, self.last, self.recordings = failure, last, 0

    def is_available(self) -> bool:
        """Adam asks from torch 2.14 on."""
        return False

    def current_stream(self) -> _Stream:
        return _Stream()

    def stream(self, stream: _Stream) -> Any:
        return nullcontext()

    def set_stream(self, stream: _Stream) -> None:
        """There is but one."""

    def device(self, device: Any) -> Any:
        return nullcontext()

    @contextmanager
    def graph(
        self, graph: RecordedGraph, *, stream: _Stream, capture_error_mode: str
    ) -> Iterator[None]:
        assert capture_error_mode == "thread_local"
        self.recordings += 1
        if self.recordings <= self.last:
            raise RuntimeError(self.failure)
        with _Recorder(graph):
            yield
