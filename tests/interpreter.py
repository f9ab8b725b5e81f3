"""Triton's interpreter, mended for what its older versions cannot: import it where it is chosen.

As a plugin of pytest: -p tests.interpreter.
"""

from __future__ import annotations

from typing import Any

from triton.runtime import interpreter

_patch_lang_tensor = interpreter._patch_lang_tensor


def _patch(tensor: Any, *rest: Any) -> None:
    """Numbers are arrays of one element there, which NumPy turns into an int up to 2.3 only."""
    _patch_lang_tensor(tensor, *rest)
    tensor.__index__ = lambda number: int(number.handle.data.item())


interpreter._patch_lang_tensor = _patch
