"""From the loader's bytes to the embedding and back, the layout is changed once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from models import create_model, normalize
from tests.models.small import trained

# arcface_torch's fc reads channels, rows, columns: what its weights expect, and ours must keep.
THE_FLATTEN = (4, 128, 2, 2)

_COPIES = {
    torch.ops.aten.clone.default,
    torch.ops.aten._to_copy.default,
    torch.ops.aten.contiguous.default,
    torch.ops.aten.copy_.default,
}


def layouts(tensor: Tensor) -> set[torch.memory_format]:
    formats = (torch.contiguous_format, torch.channels_last)
    return {kind for kind in formats if tensor.is_contiguous(memory_format=kind)}


class LayoutCopies(TorchDispatchMode):
    """Collects the shapes of 4-d tensors that were copied into another layout."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        source = args[1] if func is torch.ops.aten.copy_.default else args[0] if args else None
        result = func(*args, **(kwargs or {}))
        if func in _COPIES and source.ndim == 4 and layouts(source).isdisjoint(layouts(result)):
            self.shapes.append(tuple(source.shape))
        return result


@pytest.fixture(params=["iresnet10", "iresnet18"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    """The real structure at little work: 8 to 64 channels, images of 32 x 32 pixels."""
    torch.manual_seed(0)
    return create_model(
        request.param, embedding_dim=64, width=0.25, image_size=32, dropout=0.1
    ).train()


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    with torch.autocast("cpu", torch.bfloat16, enabled=request.param != torch.float32):
        yield request.param


def loaded() -> Tensor:
    """(4, 3, 32, 32) uint8 as the loader yields it: a view of pixels with the channels inside."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8, generator=generator)
    return pixels.permute(0, 3, 1, 2)


def test_the_flatten_before_fc_is_the_only_layout_copy(
    model: nn.Module, dtype: torch.dtype
) -> None:
    with LayoutCopies() as copies:
        embeddings = model(normalize(loaded(), dtype))
        assert copies.shapes == [THE_FLATTEN]
        embeddings.square().sum().backward()
    assert copies.shapes == [THE_FLATTEN]


def test_neither_attention_nor_squeeze_and_excitation_copies_a_map(dtype: torch.dtype) -> None:
    """Under autocast the gradients of queries and keys, (B, 1, pixels, channels), are cast."""
    network = trained("iresnet")
    with LayoutCopies() as copies:
        network(normalize(loaded(), dtype)).square().sum().backward()
    assert [shape for shape in copies.shapes if shape[1] != 1] == [THE_FLATTEN]


@pytest.mark.parametrize("name", ["mbf", "vit", "edgeface_xs"])
def test_other_networks_copy_no_map_into_another_layout(name: str, dtype: torch.dtype) -> None:
    """But for EdgeFace's attention, which is between channels: (B, heads, channels, pixels), and
    under autocast the casts of the parts of the channels that it convolves."""
    network = trained(name)
    with LayoutCopies() as copies:
        network(normalize(loaded(), dtype)).square().sum().backward()
    parts = {34, *((32, 48) if dtype != torch.float32 else ())}
    maps = [shape for shape in copies.shapes if shape[1] not in (4, *parts)]
    assert maps == []
    assert bool(copies.shapes) == (name == "edgeface_xs")


def test_a_layout_copy_anywhere_else_would_be_seen(model: nn.Module, dtype: torch.dtype) -> None:
    model.layer2.register_forward_hook(lambda _m, _i, out: out.contiguous())
    with LayoutCopies() as copies:
        model(normalize(loaded(), dtype))
    assert (4, 32, 8, 8) in copies.shapes


def test_every_activation_and_every_gradient_is_channels_last(
    model: nn.Module, dtype: torch.dtype
) -> None:
    """All but the gradient of the last map, which comes out of flatten in fc's own order."""
    strided: dict[str, bool] = {}

    def watch(name: str, module: nn.Module) -> None:
        def record(kind: str, tensor: Tensor) -> None:
            channels_last = tensor.is_contiguous(memory_format=torch.channels_last)
            strided[f"{name} {kind}"] = channels_last

        def on_forward(_module: nn.Module, _inputs: tuple[Tensor, ...], out: Tensor) -> None:
            if out.ndim == 4:
                record("activation", out)
                out.register_hook(lambda gradient: record("gradient", gradient))

        module.register_forward_hook(on_forward)

    modules = {name: module for name, module in model.named_modules() if name}
    for name, module in modules.items():
        watch(name, module)
    model(normalize(loaded(), dtype)).square().sum().backward()

    maps = [name for name in modules if name not in ("dropout", "fc", "features")]
    assert set(strided) == {f"{n} {kind}" for n in maps for kind in ("activation", "gradient")}
    assert [name for name, ok in strided.items() if not ok] == ["bn2 gradient"]
    for name, parameter in model.named_parameters():
        if parameter.ndim == 4:
            assert parameter.grad.is_contiguous(memory_format=torch.channels_last), name
