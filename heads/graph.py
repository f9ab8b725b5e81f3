"""Steps recorded once as CUDA graphs and replayed from then on."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from heads.ranks import Ranks

Result = TypeVar("Result")
Function = Callable[..., Any]

# Calls before the recording, in which libraries choose their algorithms and allocate.
_WARM_UP = 3


class Captured:
    """One function of tensors as a CUDA graph, of static shapes and without host synchronization.

    The function is given at each call and not kept: a graph that held it would hold its head, and
    the head the graph.

    Args:
        device: whose graphs are used.
        agree: whether all ranks that communicate in the function succeeded, given whether this one
            did.
    """

    def __init__(self, *, device: torch.device, agree: Callable[[bool], bool]) -> None:
        self._device, self._agree = device, agree
        self._inputs: tuple[Tensor, ...] = ()
        self._graph: Any = None
        self._result: Any = None

    def record(
        self,
        function: Function,
        *inputs: Tensor,
        warm_up: int = _WARM_UP,
        stream: torch.Stream | None = None,
    ) -> str | None:
        """Call the function `warm_up` times, then record it.

        What the calls leave behind is the caller's to undo. What fails in them, such as a lack of
        memory, is raised: other ranks went on from there.

        Args:
            inputs: like all that follow in shape, dtype and device.
            stream: a side stream to do so on; a new one by default.

        Returns:
            Why the recording failed, if it did.
        """
        self._inputs = tuple(given.detach().clone() for given in inputs)
        module = torch.get_device_module(self._device)
        obstacle = None
        with module.device(self._device):
            before, stream = module.current_stream(), stream or module.Stream()
            stream.wait_stream(before)
            with module.stream(stream):
                for _ in range(warm_up):
                    function(*self._inputs)
            before.wait_stream(stream)
            graph = module.CUDAGraph()
            try:
                # Other threads, DALI's among them, go on calling CUDA meanwhile.
                with module.graph(graph, stream=stream, capture_error_mode="thread_local"):
                    self._result = function(*self._inputs)
            except RuntimeError as error:
                obstacle = _first_cause(error)
            finally:
                module.set_stream(before)
            if not self._agree(obstacle is None):
                return obstacle or "recording failed on another rank"
        self._graph = graph
        return None

    def __call__(self, *inputs: Tensor) -> Any:
        """Replay; what it returns, tensors among it, is written again by the next call.

        Raises ValueError for inputs unlike the recorded ones.
        """
        for static, given in zip(self._inputs, inputs, strict=True):
            _check_alike(static, given)
        for static, given in zip(self._inputs, inputs, strict=True):
            static.copy_(given)
        with torch.get_device_module(self._device).device(self._device):
            self._graph.replay()
        return self._result


class StepGraphs(Generic[Result]):
    """Both halves of a step, recorded at their first calls.

    The update reads what the forward has returned, always in the same memory once the forward is
    recorded; so where there is no graph of the forward there is none of the update.

    Args:
        obstacle: a known reason why there can be no graphs; None to try. Where there is one, known
            or met, it is logged as a warning and the functions are called as they are.
    """

    def __init__(
        self, *, device: torch.device, agree: Callable[[bool], bool], obstacle: str | None
    ) -> None:
        self._captured = {
            half: Captured(device=device, agree=agree) for half in ("forward", "update")
        }
        self.obstacles: dict[str, str] = {}
        self._recorded: set[str] = set()
        self._known_obstacle = obstacle

    def forward(
        self, function: Callable[..., Result], *inputs: Tensor, undo: Callable[[], None]
    ) -> Result:
        """function(*inputs); `undo` takes back what rehearsing it has left behind."""
        if not self._tried("forward"):
            obstacle = self._known_obstacle
            if obstacle is None:
                obstacle = self._captured["forward"].record(function, *inputs)
                undo()
            self._note("forward", obstacle)
        return self._call("forward", function, *inputs)

    def update(self, function: Function, lr: Tensor, apply: Tensor) -> None:
        """function(lr, apply), both 0-d; rehearsed with `apply` false, so that nothing changes."""
        if "forward" in self.obstacles:
            function(lr, apply)
            return
        if not self._tried("update"):
            self._note(
                "update", self._captured["update"].record(function, lr, torch.zeros_like(apply))
            )
        self._call("update", function, lr, apply)

    def _tried(self, half: str) -> bool:
        return half in self._recorded or half in self.obstacles

    def _note(self, half: str, obstacle: str | None) -> None:
        if obstacle is None:
            self._recorded.add(half)
            return
        self.obstacles[half] = obstacle
        warnings.warn(f"the head's {half} goes without a CUDA graph: {obstacle}", stacklevel=5)

    def _call(self, half: str, function: Function, *inputs: Tensor) -> Any:
        if half in self.obstacles:
            return function(*inputs)
        return self._captured[half](*inputs)


class HeadGraphs(Generic[Result]):
    """A head's graphs: those of steps of a single forward, and of steps that add several up.

    Args:
        wanted: whether to record where the device has graphs. Else functions are called as they
            are.
    """

    def __init__(self, ranks: Ranks, device: torch.device, *, wanted: bool) -> None:
        self._ranks, self._device = ranks, device
        self.recording = wanted and can_record(device)
        self._graphs: dict[bool, StepGraphs[Result]] = {}
        self.forget()

    def __getitem__(self, adding: bool) -> StepGraphs[Result]:
        return self._graphs[adding]

    def forget(self) -> None:
        """Let go of all that is recorded, and record again."""
        for adding in (False, True):
            self.renew(adding=adding)

    def renew(self, *, adding: bool) -> None:
        """Record the steps of one kind again."""
        if self.recording:
            ranks, device = self._ranks, self._device
            self._graphs[adding] = StepGraphs(
                device=device,
                agree=lambda held: ranks.all_agree(held, device),
                obstacle=ranks.graph_obstacle(device),
            )

    def forward(
        self,
        function: Callable[..., Result],
        *inputs: Tensor,
        adding: bool,
        undo: Callable[[], None],
    ) -> Result:
        """As StepGraphs.forward."""
        if not self.recording:
            return function(*inputs)
        return self._graphs[adding].forward(function, *inputs, undo=undo)

    def update(self, function: Function, lr: Tensor, apply: Tensor, *, adding: bool) -> None:
        """As StepGraphs.update."""
        if self.recording:
            self._graphs[adding].update(function, lr, apply)
        else:
            function(lr, apply)


def can_record(device: torch.device) -> bool:
    """Whether a device has graphs of this kind at all."""
    if device.type in ("cpu", "meta"):
        return False
    return hasattr(torch.get_device_module(device), "CUDAGraph")


def _first_cause(error: BaseException) -> str:
    """What failed first: ending a broken recording raises another error over it."""
    while error.__context__ is not None:
        error = error.__context__
    return (str(error).splitlines() or [type(error).__name__])[0]


def _check_alike(static: Tensor, given: Tensor) -> None:
    found = (tuple(given.shape), given.dtype, given.device)
    expected = (tuple(static.shape), static.dtype, static.device)
    if found != expected:
        raise ValueError(
            f"a CUDA graph was recorded for a tensor of {_words(expected)} and now got "
            f"{_words(found)}: keep every batch alike, or do without it (cuda_graph=False)"
        )


def _words(kind: tuple[tuple[int, ...], torch.dtype, torch.device]) -> str:
    shape, dtype, device = kind
    return f"shape {shape}, {dtype}, on {device}"
