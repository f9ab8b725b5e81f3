"""heads.passes.kernels: numbers under Triton's interpreter, and what the compiled code needs.

Each in processes of their own, as an environment variable read at Triton's import decides between
the two. The cases themselves are in class_kernel_cases.py.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from heads.passes.kernels import class_kernels, kernel_launch
from tests.kernel_process import SHARED, compile_kernels, recent_triton, run_cases, run_python

_HERE = Path(__file__).parent
_CASES = (_HERE / "class_kernel_cases.py", _HERE / "row_kernel_cases.py")
_PRODUCTS = {
    "logsumexp_kernel",
    "coefficients_kernel",
    "product_kernel",
    "embedding_grad_kernel",
}


@pytest.mark.slow(seconds=8)
def test_interpreted_kernels_match_float64_and_what_is_counted() -> None:
    counted = _HERE.parents[2] / "benchmarks/head_traffic_cases.py"
    run_cases(*_CASES, *([counted] if recent_triton() else []), interpreted=True)


@pytest.mark.gpu
def test_compiled_kernels_match_float64() -> None:
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("the kernels are for compute capability 8.0 and later")
    run_cases(*_CASES, interpreted=False)


# Compute capability, dimensions, dtype: each list is compiled by one process.
_SIZES = [(capability, 512, "float16") for capability in (75, 80, 90, 120)]
_OTHER_SIZES = [(card, dim, "bfloat16") for card in (80, 90) for dim in (128, 1024)]


def _steps(capability: int, dim: int, dtype: str) -> list[str]:
    """Of 512 dimensions every kind, of others the one that holds most in registers."""
    kinds = (
        ("3:hooks", "1:plain", "1:threshold") if dim == 512 and capability > 75 else ("3:hooks",)
    )
    return [f"{capability}:{dim}:{dtype}:{kind}" for kind in kinds]


def _compile(sizes: list[tuple[int, int, str]], config: pytest.Config) -> list[dict[str, Any]]:
    steps = [step for size in sizes for step in _steps(*size)]
    return compile_kernels(_HERE / "compile_kernels.py", steps, config)


@pytest.fixture(scope="module")
def compiled(pytestconfig: pytest.Config) -> list[dict[str, Any]]:
    return _compile(_SIZES, pytestconfig)


def _of(results: list[dict[str, Any]], size: tuple[int, int, str]) -> list[dict[str, Any]]:
    return [result for result in results if result["step"] in _steps(*size)]


def _check(results: list[dict[str, Any]], capability: int) -> None:
    """Shared memory fits, nothing spills, and products run on tensor cores."""
    assert {result["kernel"] for result in results} > _PRODUCTS
    for result in results:
        assert result["stack"] == 0, f"spills: {result}"
        assert result["shared"] <= SHARED[capability], result
        assert result["tensor_cores"] == (result["kernel"] in _PRODUCTS), result


@pytest.mark.slow(seconds=8)
@pytest.mark.parametrize("size", _SIZES[1:])
def test_compiles_without_spills(
    compiled: list[dict[str, Any]], size: tuple[int, int, str]
) -> None:
    _check(_of(compiled, size), size[0])


@pytest.mark.slow(seconds=8)
def test_compiles_other_sizes_without_spills(pytestconfig: pytest.Config) -> None:
    results = _compile(_OTHER_SIZES, pytestconfig)
    for size in _OTHER_SIZES:
        _check(_of(results, size), size[0])


@pytest.mark.slow(seconds=8)
def test_before_ampere_only_the_products_are_out_of_reach(compiled: list[dict[str, Any]]) -> None:
    """Why `available` says no there: if this fails, Triton has learned it again."""
    results = _of(compiled, _SIZES[0])
    assert {result["kernel"] for result in results} > _PRODUCTS
    for result in results:
        assert not result["tensor_cores"]
        if result["kernel"] not in _PRODUCTS:
            assert result["stack"] == 0, f"spills: {result}"
            assert result["shared"] <= SHARED[75], result


def test_available_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    half = torch.float16
    assert "float32" in kernel_launch.available(gpu, 512, torch.float32)
    assert "1024" in kernel_launch.available(gpu, 1025, half)
    assert "NVIDIA" in kernel_launch.available(cpu, 512, half)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert "7.5" in kernel_launch.available(gpu, 512, half)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    for dtype, dim in itertools.product((half, torch.bfloat16), (1, 1024)):
        assert kernel_launch.available(gpu, dim, dtype) is None
    monkeypatch.setattr(kernel_launch, "triton", None)
    assert "not installed" in kernel_launch.available(gpu, 512, half)


@pytest.mark.slow(seconds=8)
def test_imports_without_triton() -> None:
    code = """
import sys, torch
sys.modules["triton"] = None
from heads.passes.kernels import class_kernels, kernel_launch, row_kernels
print(kernel_launch.available(torch.device("cuda"), 512, torch.float16))
"""
    assert run_python("-c", code).strip() == "triton is not installed"


@pytest.mark.parametrize("capability", [None, (8, 0), (8, 6), (9, 0), (10, 0), (12, 0)])
@pytest.mark.parametrize("dim", [1, 17, 100, 512, 1024])
def test_tiles_are_powers_of_two_that_divide_a_chunk(
    capability: tuple[int, int] | None, dim: int
) -> None:
    tile = kernel_launch.tiles(capability, dim)
    assert all(size >= 16 and size & (size - 1) == 0 for size in tile[:5])
    for pitch, subcenters in itertools.product((16, 512, 1 << 20), (1, 3)):
        chunk = class_kernels._chunk_size(10**7, pitch, subcenters, 2)
        assert all(chunk % size == 0 for size in (tile.classes, tile.depth, tile.block))
