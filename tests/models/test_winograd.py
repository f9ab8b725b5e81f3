"""Winograd's products are those of a convolution, and where they are used."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func

from models import create_model
from models.fold import fold_batch_norm
from models.winograd import WinogradConv2d, _Winograd, use_winograd


def drawn(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def results(convolve, x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    """Output and gradients."""
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    out = convolve(x, weight)
    return (out, *torch.autograd.grad(out, (x, weight), drawn(*out.shape).to(out.dtype)))


def direct(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight.to(x.dtype), padding=1)


def off(found: Tensor, expected: Tensor) -> float:
    """Relative."""
    return float(((found.double() - expected).norm() / expected.norm()).detach())


@pytest.mark.parametrize("size", [(8, 8), (7, 7), (6, 5), (1, 2), (1, 1)])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_output_and_gradients_are_the_convolutions(size, layout):
    x = drawn(3, 6, *size).contiguous(memory_format=layout)
    weight = drawn(10, 6, 3, 3)
    for found, expected in zip(results(_Winograd.apply, x, weight), results(direct, x, weight)):
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_in_bfloat16_it_rounds_no_more_than_four_times_as_much():
    x, weight = drawn(2, 128, 14, 14, dtype=torch.bfloat16), drawn(128, 128, 3, 3).float()
    expected = results(direct, x.double(), weight.double())
    ours, theirs = (results(way, x, weight) for way in (_Winograd.apply, direct))
    for found, plain, exact in zip(ours, theirs, expected):
        assert found.dtype == plain.dtype
        assert off(found, exact) < 4 * off(plain, exact)
    assert off(ours[0], expected[0]) > 1e-4  # it is not the convolution itself


@pytest.fixture
def layer() -> nn.Module:
    network = nn.Sequential(nn.Conv2d(128, 128, 3, padding=1, bias=False), nn.BatchNorm2d(128))
    return network.to(memory_format=torch.channels_last)


def compiled_operators(layer: nn.Module) -> list[str]:
    """What the compiled forward and backward call."""
    called: list[str] = []

    def look(graph: torch.fx.GraphModule, _inputs: list) -> object:
        called.extend(str(node.target) for node in graph.graph.nodes)
        return make_boxed_func(graph)

    compiled = torch.compile(layer, backend=aot_autograd(fw_compiler=look), fullgraph=True)
    compiled(image().requires_grad_()).sum().backward()
    return called


def image() -> Tensor:
    return drawn(2, 128, 4, 4).float().contiguous(memory_format=torch.channels_last)


@pytest.mark.slow
def test_compiled_training_is_by_its_products(layer):
    assert use_winograd(layer) == 1
    called = compiled_operators(layer)
    assert called.count("aten.bmm.default") == 3
    assert not [name for name in called if "convolution" in name]


def test_uncompiled_it_is_torchs(layer):
    changed = copy.deepcopy(layer)
    use_winograd(changed)
    assert torch.equal(changed(image()), layer(image()))


def test_names_tensors_and_what_is_folded_stay(layer):
    changed = copy.deepcopy(layer)
    use_winograd(changed)
    assert changed.state_dict().keys() == layer.state_dict().keys()
    plain, folded = (fold_batch_norm(network.eval()) for network in (layer, changed))
    assert torch.equal(plain(image()), folded(image()))
    assert sum(type(module) is nn.BatchNorm2d for module in folded.modules()) == 0


@pytest.mark.parametrize(
    "other",
    [
        nn.Conv2d(128, 128, 3, padding=1),  # with a bias
        nn.Conv2d(128, 128, 3, padding=1, stride=2, bias=False),
        nn.Conv2d(128, 128, 3, bias=False),
        nn.Conv2d(128, 128, 1, bias=False),
        nn.Conv2d(128, 128, 3, padding=1, padding_mode="reflect", bias=False),
        nn.Conv2d(128, 128, 3, padding=1, groups=2, bias=False),
        nn.Conv2d(128, 128, 3, padding=2, dilation=2, bias=False),
        nn.Conv2d(64, 128, 3, padding=1, bias=False),
    ],
    ids=str,
)
def test_what_it_does_not_fit_stays(other):
    assert use_winograd(nn.Sequential(other)) == 0
    assert type(other) is nn.Conv2d


def test_those_of_a_network_are_found():
    with torch.device("meta"):
        network = create_model("iresnet18", embedding_dim=8, image_size=32)
    assert use_winograd(network) == sum(type(m) is WinogradConv2d for m in network.modules()) == 8
