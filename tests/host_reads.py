"""A mode under which Python that reads what a tensor holds raises, on any device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from torch import Tensor

from tests.graph_safety import GraphSafety

# These copy or look without an operator that a dispatch mode would see, on a CPU at least.
_READS = (
    *("cpu", "item", "tolist", "numpy", "__array__", "__dlpack__"),
    *("__bool__", "__int__", "__float__", "__complex__", "__index__"),
    *("__format__", "__repr__", "__str__", "__contains__", "__reduce_ex__"),
)


class HostReadError(AssertionError):
    """The host asked what a tensor holds, for which it would wait for the device."""


class HostReads(GraphSafety):
    """Refuses Tensor.item, cpu, tolist, numpy, float(), bool(), printing, pickling, nonzero,
    boolean masks, torch.equal and their like, and Tensor.to("cpu").

    On a CPU, .to(device) with the device of the step is no read, so only the word "cpu" is refused.
    """

    def __init__(self) -> None:
        super().__init__()
        self._allowed = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._allowed:
            return func(*args, **(kwargs or {}))
        return super().__torch_dispatch__(func, types, args, kwargs)

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """Here reads are meant, as for a line of the log."""
        before, self._allowed = self._allowed, True
        try:
            yield
        finally:
            self._allowed = before

    def allow(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, free to read."""

        def free(*args: Any, **kwargs: Any) -> Any:
            with self.allowed():
                return function(*args, **kwargs)

        return free

    def guard(self, name: str) -> Callable[..., Any]:
        """What stands in for a Tensor's method of this name."""
        original = getattr(Tensor, name)

        def method(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            to_host = name != "to" or "cpu" in (*args[:1], kwargs.get("device"))
            if not self._allowed and to_host:
                raise HostReadError(f"Tensor.{name} reads from the device")
            return original(tensor, *args, **kwargs)

        return method


@contextmanager
def no_host_reads() -> Iterator[HostReads]:
    """Refuse reads of tensors in what runs inside, backward included; yields what may allow them.

    Raises HostReadError or GraphUnsafeError where the read is. Tensor's methods are replaced for
    all threads, the operators are watched in this one.
    """
    mode = HostReads()
    with pytest.MonkeyPatch.context() as patch, mode:
        for name in (*_READS, "to"):
            patch.setattr(Tensor, name, mode.guard(name))
        yield mode
