"""A function of tensors, recorded once as a CUDA graph and replayed from then on."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")

# Calls before the recording, in which libraries choose their algorithms and allocate.
_WARM_UP = 3


class Captured(Generic[Result]):
    """`function`, called through a CUDA graph once `record` has made one.

    function: of static shapes, without host synchronization. What it returns, tensors among it, is
        overwritten by the next call.
    device: whose graphs are used.
    obstacle: a known reason why there can be no graph; None to try.

    Where there is an obstacle, known or met in recording, it is told as a warning and the function
    is called as it is.
    """

    def __init__(
        self,
        function: Callable[..., Result],
        *,
        device: torch.device,
        obstacle: str | None = None,
    ) -> None:
        self._function = function
        self._module: Any = torch.get_device_module(device)
        self._inputs: tuple[Tensor, ...] = ()
        self._graph: Any = None
        self._result: Any = None
        self.obstacle = obstacle
        if obstacle:
            self._tell()

    @property
    def ready(self) -> bool:
        """Whether calls may follow: recorded, or known to go without."""
        return self._graph is not None or self.obstacle is not None

    def record(self, *inputs: Tensor) -> None:
        """Call the function a few times and record it; the caller undoes what that leaves behind.

        inputs: like all that follow in shape, dtype and device.
        """
        self._inputs = tuple(given.detach().clone() for given in inputs)
        module = self._module
        try:
            stream = module.Stream()
            stream.wait_stream(module.current_stream())
            with module.stream(stream):
                for _ in range(_WARM_UP):
                    self._function(*self._inputs)
            module.current_stream().wait_stream(stream)
            graph = module.CUDAGraph()
            # Other threads, DALI's among them, go on calling CUDA meanwhile.
            with module.graph(graph, stream=stream, capture_error_mode="thread_local"):
                self._result = self._function(*self._inputs)
            self._graph = graph
        except RuntimeError as error:
            self.obstacle = str(error).splitlines()[0]
            self._tell()

    def __call__(self, *inputs: Tensor) -> Result:
        """Raises ValueError for inputs unlike the recorded ones."""
        assert self.ready
        if self._graph is None:
            return self._function(*inputs)
        for static, given in zip(self._inputs, inputs):
            _check_alike(static, given)
            static.copy_(given)
        self._graph.replay()
        return self._result

    def _tell(self) -> None:
        warnings.warn(f"the head goes without a CUDA graph: {self.obstacle}", stacklevel=3)


def _check_alike(static: Tensor, given: Tensor) -> None:
    found = (tuple(given.shape), given.dtype, given.device)
    expected = (tuple(static.shape), static.dtype, static.device)
    if found != expected:
        raise ValueError(
            f"the head was captured in a CUDA graph for an input of {_words(expected)} and now got "
            f"{_words(found)}: keep every batch alike, or build the head with cuda_graph=False"
        )


def _words(kind: tuple[tuple[int, ...], torch.dtype, torch.device]) -> str:
    shape, dtype, device = kind
    return f"shape {shape}, {dtype}, on {device}"
