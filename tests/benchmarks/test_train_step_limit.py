"""The limit that a step's time is held against."""

from __future__ import annotations

import pytest
import torch

from benchmarks import train_step


@pytest.mark.slow
def test_the_limit_is_products_and_then_memory_in_the_dtype(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rates = {"flops_per_s": 1e12, "bytes_per_s": 1e10}
    monkeypatch.setattr(train_step, "_rates", lambda _dtype: rates)
    half, whole = (
        train_step.limit_of("iresnet18", 32, dtype) for dtype in (torch.bfloat16, torch.float32)
    )
    # 2.61 G multiply-adds an image, 10,000 classes of 512 features: once forward, twice back.
    assert half["flops"] == pytest.approx(6 * 32 * (2.61e9 + 10_000 * 512), rel=1e-3)
    # 92 of 142 MB an image are not the convolutions': see docs/networks.md.
    assert half["bytes"] == pytest.approx(32 * 92e6, rel=0.02)
    assert whole["bytes"] == 2 * half["bytes"]
    assert half["seconds"] == half["flops"] / 1e12 + half["bytes"] / 1e10
