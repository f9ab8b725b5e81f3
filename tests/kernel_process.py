"""Triton's kernels in processes of their own, as it reads its variables when it is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import triton

ROOT = Path(__file__).parents[1]
KIB = 1 << 10
# Bytes a multiprocessor's programs share at most, by compute capability; of 8.x the least.
SHARED = {75: 64 * KIB, 80: 99 * KIB, 90: 227 * KIB, 120: 99 * KIB}


def run_python(*command: str, interpreted: bool = False, **environment: str) -> str:
    """A Python process's output; its failure is the test's."""
    settings = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    if interpreted:
        settings["TRITON_INTERPRET"] = "1"
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**settings, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]
    return done.stdout


def run_cases(*paths: Path, interpreted: bool) -> None:
    """Run the tests of files under Triton's interpreter, or compiled where there is a GPU."""
    output = run_python(
        *("-m", "pytest", *map(str, paths), "-p", "no:cacheprovider", "--tb=short"),
        *(("-p", "tests.interpreter") if interpreted else ()),
        interpreted=interpreted,
    )
    assert " passed" in output
    assert "skipped" not in output


def recent_triton() -> bool:
    """Whether Triton's own classes are those that kernels are watched and compiled through here.

    Those of torch 2.6's Triton, 3.2, are others. The kernels themselves run with either.
    """
    return hasattr(triton, "knobs")


def compile_kernels(script: Path, steps: list[str], config: pytest.Config) -> list[dict[str, Any]]:
    """What a script with `compiled_kernels.compile_steps` finds for these steps.

    It skips where this Triton has another way to compile without a GPU.
    """
    if not recent_triton():
        pytest.skip(f"triton {triton.__version__} compiles without a GPU in another way")
    output = run_python(
        *("-W", "ignore", str(script), *steps),
        # What was compiled for an earlier session is found there, by the kernels' source.
        TRITON_CACHE_DIR=str(config.cache.mkdir("triton")),
        TRITON_DEFAULT_FP_FUSION="1",
    )
    return json.loads(output)
