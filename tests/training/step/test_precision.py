"""The one decision about numbers, and that what must be float32 under it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from heads import ArcFace, PartialFC
from models import create_model, normalize
from training.step import precision
from training.step.precision import choose_precision

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
aten = torch.ops.aten


@pytest.fixture
def capability(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: request.param)


@pytest.mark.parametrize(("has", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_cpu_computes_in_bfloat16_where_it_has_it(monkeypatch, has, dtype):
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: has)
    chosen = choose_precision(CPU)
    assert (chosen.compute_dtype, chosen.loss_scaling) == (dtype, False)
    assert (chosen.head_dtype, chosen.tf32) == (torch.float32, False)
    assert "bfloat16" in chosen.reason


def test_a_cpu_that_torch_uses_no_more_than_avx2_of_computes_in_float32(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert choose_precision(CPU).compute_dtype == torch.float32


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [
        ((7, 0), torch.float16),  # Volta
        ((7, 5), torch.float16),  # Turing
        ((8, 0), torch.bfloat16),  # Ampere
        ((9, 0), torch.bfloat16),  # Hopper
    ],
    indirect=["capability"],
)
def test_a_gpu_computes_in_half_precision_and_scales_only_float16(capability, dtype):
    chosen = choose_precision(GPU)
    assert (chosen.compute_dtype, chosen.head_dtype) == (dtype, torch.float16)
    assert chosen.loss_scaling == (dtype == torch.float16)
    assert chosen.memory_format == torch.channels_last


@pytest.mark.parametrize(
    ("capability", "requested", "tf32", "message"),
    [
        ((7, 5), "auto", False, "lacks bfloat16"),
        ((7, 5), "fp32", False, "the configuration asks for it"),
        ((8, 0), "auto", True, "has bfloat16; float32 products are rounded to TF32"),
        ((8, 0), "bf16", True, "asks for it; float32 products are rounded to TF32"),
        ((8, 0), "fp32", False, "asks for it; float32 products are not rounded to TF32"),
        ((8, 0), "fp16", False, "asks for it; float32 products are not rounded to TF32"),
    ],
    indirect=["capability"],
)
def test_who_asks_for_float32_gets_all_its_bits(capability, requested, tf32, message):
    chosen = choose_precision(GPU, requested)
    assert chosen.tf32 == tf32
    assert chosen.reason.endswith(message)


def test_what_is_asked_for_is_done_and_said():
    chosen = choose_precision(CPU, "fp32")
    assert (chosen.compute_dtype, chosen.reason) == (
        torch.float32,
        "the configuration asks for it",
    )


def test_float16_on_a_cpu_is_refused():
    with pytest.raises(ValueError, match="use bf16 or fp32"):
        choose_precision(CPU, "fp16")


@pytest.fixture
def kept_settings() -> Iterator[None]:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.parametrize("capability", [(8, 0)], indirect=True)
def test_applying_it_sets_products_and_convolutions_alike(capability, kept_settings):
    choose_precision(GPU, "bf16").apply()
    assert torch.get_float32_matmul_precision() == "high"
    assert torch.backends.cudnn.allow_tf32
    choose_precision(GPU, "fp32").apply()
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cudnn.allow_tf32


class Dtypes(TorchDispatchMode):
    """Collects, by operator, the dtypes of what it reads and of what it gives."""

    def __init__(self) -> None:
        super().__init__()
        self.read: dict[Any, set[torch.dtype]] = {}
        self.given: dict[Any, list[tuple[torch.dtype, ...]]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given = result if isinstance(result, (tuple, list)) else (result,)
        tensors = [t for t in args if isinstance(t, torch.Tensor) and t.is_floating_point()]
        self.read.setdefault(func, set()).update(t.dtype for t in tensors)
        dtypes = tuple(t.dtype for t in given if isinstance(t, torch.Tensor))
        self.given.setdefault(func, []).append(dtypes)
        return result


def test_under_bfloat16_statistics_and_the_last_layer_are_float32():
    torch.manual_seed(0)
    model = create_model("iresnet10", embedding_dim=16, width=0.25, image_size=32).train()
    images = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    chosen = choose_precision(CPU, "bf16")
    with Dtypes() as seen, chosen.autocast(CPU):
        embeddings = model(normalize(images, chosen.compute_dtype))
    assert seen.read[aten.convolution.default] == {torch.bfloat16}
    assert seen.read[aten.addmm.default] == {torch.float32}
    assert embeddings.dtype == torch.float32

    norms = seen.given[aten.native_batch_norm.default]
    assert {maps for maps, *_ in norms} == {torch.bfloat16, torch.float32}  # float32: `features`
    assert {statistics for _, *both in norms for statistics in both} == {torch.float32}
    for name, buffer in model.named_buffers():
        assert buffer.dtype == torch.float32 or name.endswith("num_batches_tracked")


def test_the_head_normalizes_and_sums_exponentials_in_float32():
    """Even of bfloat16 embeddings and with bfloat16 products."""
    head = PartialFC(
        num_classes=50, embedding_dim=16, margin=ArcFace(margin=0.5), compute_dtype=torch.bfloat16
    )
    embeddings = torch.randn(4, 16, dtype=torch.bfloat16, requires_grad=True)
    with Dtypes() as seen:
        loss = head(embeddings, torch.arange(4))
    assert torch.bfloat16 in seen.read[aten.mm.default] | seen.read.get(aten.mm.out, set())
    reducing = ("norm", "sum", "exp", "log", "mean", "softmax")
    found = {
        func: dtypes for func, dtypes in seen.read.items() if any(r in str(func) for r in reducing)
    }
    assert any("exp" in str(func) for func in found)
    assert any("norm" in str(func) for func in found)
    for func, dtypes in found.items():
        assert torch.bfloat16 not in dtypes, func
    assert loss.dtype == torch.float32
