"""A compiled backbone trains as before; one that cannot be compiled trains all the same."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor import config as inductor
from torch.nn.parallel import DistributedDataParallel

from models import create_model, fold_batch_norm, normalize
from models.iresnet import STAGES
from training.config import ConfigError, ModelConfig
from training.distributed import join_world, leave_world
from training.step.compile import compile_backbone
from training.step.precision import choose_precision

BATCH, SIZE = 4, 16
FP32 = choose_precision(torch.device("cpu"), "fp32")


def small_backbone(name: str = "iresnet10") -> nn.Module:
    torch.manual_seed(0)
    model = create_model(name, embedding_dim=16, width=0.25, image_size=SIZE)
    torch.manual_seed(1)
    return model.train()


def compiled(backbone: nn.Module, *, alone: bool = False) -> str:
    return compile_backbone(
        backbone, stages=STAGES, alone=alone, batch=BATCH, image_size=SIZE, precision=FP32
    )


def images(batch: int = BATCH) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (batch, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator)
    return normalize(pixels.permute(0, 3, 1, 2), torch.float32)


def gradients(backbone: nn.Module) -> dict[str, Tensor]:
    backbone(images()).square().sum().backward()
    return {name: p.grad for name, p in backbone.named_parameters() if p.requires_grad}


@pytest.fixture
def use_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any], None]]:
    """Lets blocks be compiled by something quicker, or worse, than torch's default."""
    torch.compiler.reset()
    original = nn.Module.compile
    yield lambda backend: monkeypatch.setattr(
        nn.Module, "compile", partialmethod(original, backend=backend)
    )
    torch.compiler.reset()


@pytest.mark.slow
def test_gradients_statistics_and_names_are_those_of_the_uncompiled_backbone(use_compiler):
    use_compiler("aot_eager")
    plain, backbone = small_backbone(), small_backbone()
    assert compiled(backbone).startswith("compiled 4 blocks in ")
    expected = gradients(plain)
    for name, gradient in gradients(backbone).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-3)
    state = backbone.state_dict()
    assert list(state) == list(plain.state_dict())
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_compiling_changes_neither_statistics_nor_gradients(use_compiler):
    use_compiler("aot_eager")
    backbone, untouched = small_backbone(), small_backbone().state_dict()
    compiled(backbone)
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, untouched[name]), name
    assert all(parameter.grad is None for parameter in backbone.parameters())


@pytest.mark.slow
def test_blocks_of_one_shape_share_code_and_training_compiles_nothing_more(use_compiler):
    """Neither a step under DistributedDataParallel nor verification with another batch size."""
    counter = CompileCounterWithBackend("aot_eager")
    use_compiler(counter)
    backbone = small_backbone("iresnet50")
    compiled(backbone)
    assert counter.frame_count == 8, "a first block and later ones, in four stages"
    join_world("cpu")
    try:
        gradients(DistributedDataParallel(backbone, static_graph=True))
    finally:
        leave_world()
    with torch.no_grad():
        fold_batch_norm(backbone)(images(3))
    assert counter.frame_count == 8


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def failing_backend(*_: Any) -> None:
    raise NotImplementedError("no such instruction")


def failing_in_backward(graph: torch.fx.GraphModule, example: list[Tensor]) -> Callable[..., Any]:
    """Compiles; what it compiled raises when gradients flow back through it."""

    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            raise NotImplementedError("no such instruction")

    return lambda *inputs: tuple(Broken.apply(out) for out in graph(*inputs))


def wrong_backend(graph: torch.fx.GraphModule, example: list[Tensor]) -> Callable[..., Any]:
    """Compiles to something else, as code from the cache of another machine may."""
    return lambda *inputs: tuple(out.roll(1, dims=1) for out in graph(*inputs))


@pytest.mark.slow
def test_what_was_compiled_wrong_is_not_run(use_compiler, caplog):
    use_compiler(wrong_backend)
    backbone = small_backbone()
    with caplog.at_level(logging.WARNING):
        assert compiled(backbone) == "not compiled, see the warning"
        found = gradients(backbone)
    assert "has other gradients" in caplog.text
    assert "TORCHINDUCTOR_CACHE_DIR" in caplog.text
    expected = gradients(small_backbone())
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.slow
@pytest.mark.parametrize("backend", [failing_backend, failing_in_backward])
def test_what_cannot_be_compiled_runs_as_it_is_and_says_why_once(use_compiler, caplog, backend):
    use_compiler(backend)
    backbone = small_backbone()
    with caplog.at_level(logging.WARNING):
        assert compiled(backbone) == "not compiled, see the warning"
        found = gradients(backbone)
    (warning,) = warnings_of(caplog)
    assert warning.startswith("model.compile: the backbone runs uncompiled, because ")
    assert "no such instruction" in warning
    expected = gradients(small_backbone())
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_a_machine_without_a_cpp_compiler_trains_uncompiled(
    use_compiler, monkeypatch, caplog, tmp_path: Path
):
    use_compiler("inductor")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    backbone = small_backbone()
    with caplog.at_level(logging.WARNING), inductor.patch({"cpp.cxx": ("/nonexistent",)}):
        assert compiled(backbone) == "not compiled, see the warning"
    (warning,) = warnings_of(caplog)
    assert "/nonexistent" in warning
    assert gradients(backbone)


def beginning() -> nn.Module:
    """A backbone's stem and its first stage: each shape more is compiled for a second."""
    backbone = small_backbone()
    rest = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(backbone.conv1, backbone.bn1, backbone.prelu, backbone.layer1, *rest)


@pytest.mark.slow
def test_torchs_own_compiler_gives_the_gradients_of_the_uncompiled_backbone():
    torch.compiler.reset()
    plain, backbone = beginning(), beginning()
    assert "compiled whole in" in compiled(backbone, alone=True)
    expected = gradients(plain)
    for name, gradient in gradients(backbone).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-3)


def test_compiling_with_statistics_over_all_ranks_is_refused():
    with pytest.raises(ConfigError, match=r"model\.compile=True: expected false with sync_bn"):
        ModelConfig(compile=True, sync_bn=True)
