"""NVIDIA DALI, imported when it is used and not before: `dali.fn`, `dali.types`, `dali.Pipeline`.

Whatever does not decode on a GPU and applies no recipe but flip runs without it. So every file here
imports this module and never DALI itself.
"""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType
from typing import Any

import torch

from facestream import UserError
from pipeline.dali_wheel import dali_wheel

_NAMES = ("Pipeline", "fn", "math", "pipeline_def", "types")


class DaliMissingError(UserError):
    """DALI is needed, and cannot be imported."""


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(require(), name)


def require() -> ModuleType:
    """DALI itself. Raises DaliMissingError where it cannot be imported."""
    try:
        return importlib.import_module("nvidia.dali")
    except (ImportError, OSError) as error:  # not there, or without the libraries that it links to
        raise DaliMissingError(
            f"NVIDIA DALI is needed and cannot be imported ({error}): "
            f"pip install {dali_wheel(torch.version.cuda)}; or "
            "run without it, with augment=[flip] or [] and decode=hybrid or cpu"
        ) from error


def is_installed() -> bool:
    """Whether DALI is there, without importing it."""
    try:
        return importlib.util.find_spec("nvidia.dali") is not None
    except ImportError:  # not even the package that it is a part of
        return False
