"""A stream beside a device's default one, for what is to be recorded in a CUDA graph."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch


@cache
def side_stream(device: torch.device) -> torch.Stream:
    """The same stream at every call: DDP remembers where it was built, memory where it was used."""
    return torch.get_device_module(device).Stream()


def aside(device: torch.device) -> AbstractContextManager:
    """On a device that has streams, run what is inside on `side_stream`."""
    if device.type == "cpu":
        return nullcontext()
    return torch.get_device_module(device).stream(side_stream(device))
