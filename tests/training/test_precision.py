"""The one decision about numbers."""

import pytest
import torch

from training import precision
from training.precision import choose_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(("has", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_cpu_computes_in_bfloat16_where_it_has_it(monkeypatch, has, dtype):
    monkeypatch.setattr(precision, "_cpu_has_bf16", lambda: has)
    chosen = choose_precision(CPU)
    assert (chosen.compute_dtype, chosen.loss_scaling) == (dtype, False)
    assert "bfloat16" in chosen.reason


@pytest.mark.parametrize(
    ("capability", "dtype"), [((7, 5), torch.float16), ((8, 0), torch.bfloat16)]
)
def test_a_gpu_computes_in_half_precision_and_scales_only_float16(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    chosen = choose_precision(torch.device("cuda", 0))
    assert (chosen.compute_dtype, chosen.head_dtype) == (dtype, torch.float16)
    assert chosen.loss_scaling == (dtype == torch.float16)


def test_what_is_asked_for_is_done_and_said():
    chosen = choose_precision(CPU, "fp32")
    assert (chosen.compute_dtype, chosen.reason) == (
        torch.float32,
        "the configuration asks for it",
    )


def test_float16_on_a_cpu_is_refused():
    with pytest.raises(ValueError, match="use bf16 or fp32"):
        choose_precision(CPU, "fp16")
