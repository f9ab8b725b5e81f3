"""The rows of a step on the device, in memory that stays where it is for graphs to read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


class WorkingSet:
    """Tensors by name, copied to the device and back beside what else it does.

    Where the device is the host and nothing is recorded, they are the given tensors themselves.

    Args:
        fixed: whether their addresses must stay: on an accelerator, and where graphs are recorded.
    """

    def __init__(self, device: torch.device, *, fixed: bool) -> None:
        self._device, self._fixed = device, fixed
        self._module: Any = torch.get_device_module(device) if fixed else None
        self._stream: torch.Stream | None = None
        self.tensors: dict[str, Tensor] = {}

    def load(self, host: Mapping[str, Tensor]) -> None:
        """Take the tensors of the next step; those that change shape get another address."""
        if not self._fixed:
            self.tensors = dict(host)
            return
        if self._stream is not None:  # what is still on its way back is read from this memory
            self._module.current_stream().wait_stream(self._stream)
        for name in self.tensors.keys() - host.keys():
            del self.tensors[name]
        for name, tensor in host.items():
            held = self.tensors.get(name)
            if held is None or held.shape != tensor.shape:
                self.tensors[name] = held = torch.empty_like(tensor, device=self._device)
            held.copy_(tensor, non_blocking=True)

    def unload(self, into: Mapping[str, Tensor]) -> Callable[[], None]:
        """Begin to copy tensors back to the host; returns what waits until they are there."""
        if not self._fixed:
            return lambda: None
        if self._stream is None:
            self._stream = self._module.Stream()
        self._stream.wait_stream(self._module.current_stream())
        with self._module.stream(self._stream):
            for name, tensor in into.items():
                tensor.copy_(self.tensors[name], non_blocking=True)
            copied = self._module.Event()
            copied.record(self._stream)
        return copied.synchronize
