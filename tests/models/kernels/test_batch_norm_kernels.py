"""models.kernels.batch_norm: its numbers under Triton's interpreter, and what its code needs.

Each in processes of their own, as an environment variable read at Triton's import decides between
the two. The cases themselves are in batch_norm_cases.py.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import nn

from models.batch_norm import FusedBatchNorm2d, fuse_batch_norm
from models.kernels import batch_norm, batch_norm_code
from tests.kernel_process import SHARED, compile_kernels, run_cases

_HERE = Path(__file__).parent
_ALL = {
    *("moments_kernel", "statistics_kernel", "output_kernel"),
    *("sums_kernel", "input_grad_kernel"),
}


@pytest.mark.slow(seconds=10)
def test_interpreted_kernels_match_torch() -> None:
    run_cases(_HERE / "batch_norm_cases.py", interpreted=True)


@pytest.mark.gpu
def test_compiled_kernels_match_torch() -> None:
    run_cases(_HERE / "batch_norm_cases.py", interpreted=False)


@pytest.mark.slow(seconds=10)
def test_compiles_without_spills(pytestconfig: pytest.Config) -> None:
    """Also where channels fill no tile; and on a T4, which has no bfloat16."""
    cards = [(75, "float16"), *((card, "bfloat16") for card in (80, 90, 120))]
    sizes = [(64, "prelu"), (64, "added"), (48, "alone")]
    steps = [
        f"{card}:{channels}:{dtype}:{follows}"
        for (card, dtype), (channels, follows) in itertools.product(cards, sizes)
    ]
    results = compile_kernels(_HERE / "compile_batch_norm.py", steps, pytestconfig)
    for step in steps:
        assert {result["kernel"] for result in results} == _ALL
        assert any(result["step"] == step for result in results), f"nothing was compiled for {step}"
    for result in results:
        card = int(result["step"].partition(":")[0])
        assert result["stack"] == 0, f"spills: {result}"
        assert result["shared"] <= SHARED[card] / 16, result


def test_obstacles_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert batch_norm.obstacle(cpu) == "the kernels are for NVIDIA GPUs, the network is on a cpu"
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(batch_norm.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert batch_norm.obstacle(gpu) is None
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(batch_norm.shutil, "which", lambda name: None)
    assert "C compiler" in batch_norm.obstacle(gpu)
    monkeypatch.setattr(batch_norm_code, "triton", None)
    assert batch_norm.obstacle(gpu) == "triton is not installed"


def test_only_what_trains_by_its_own_statistics_is_fused() -> None:
    network = nn.Sequential(
        nn.BatchNorm2d(4),
        nn.BatchNorm2d(4, affine=False),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.BatchNorm2d(4, momentum=None),
        nn.SyncBatchNorm(4),
        nn.BatchNorm1d(4),
    )
    names = list(network.state_dict())
    fuse_batch_norm(network)
    fused = [type(module) is FusedBatchNorm2d for module in network]
    assert fused == [True, *[False] * 5]
    assert list(network.state_dict()) == names
