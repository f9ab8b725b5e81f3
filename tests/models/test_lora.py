"""Low-rank updates: nothing at the start, alone to learn, and merged to the bit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from models import fold_batch_norm
from models.lora import (
    FACTORS,
    LowRankConv2d,
    LowRankLinear,
    add_low_rank,
    layers_for_low_rank,
    merge_low_rank,
    merged_tensors,
)
from tests.models.small import SMALL, small

SCALE = 2.0


def updated(name: str = "iresnet10", *, learned: bool = True) -> nn.Module:
    """With updates of all layers that can have some, in train mode."""
    torch.manual_seed(0)
    network = small(name).create()
    add_low_rank(network, layers_for_low_rank(network), rank=4, scale=SCALE)
    if learned:
        for key, parameter in network.named_parameters():
            if key.endswith(FACTORS[1]):
                nn.init.normal_(parameter, std=0.02)
    return network.train()


def images(name: str) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    size = small(name).image_size
    pixels = torch.rand(4, 3, size, size, generator=generator) * 2 - 1
    return pixels.contiguous(memory_format=torch.channels_last)


def embeddings(network: nn.Module, name: str) -> Tensor:
    with torch.no_grad():
        return network.eval()(images(name))


def test_linear_layers_and_small_convolutions_of_whole_channels_can_have_them():
    network = nn.Sequential(
        nn.Conv2d(3, 8, 1),
        nn.Conv2d(8, 8, 3),
        nn.Conv2d(8, 8, 5),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Linear(8, 8),
        nn.BatchNorm1d(8),
        nn.MultiheadAttention(8, 2),
    )
    assert layers_for_low_rank(network) == ["0", "1", "4"]


@pytest.mark.parametrize("name", SMALL)
def test_at_the_start_nothing_changes_but_that_factors_are_added(name):
    plain, network = small(name).create(), updated(name, learned=False)
    stored = network.state_dict()
    assert [key for key in stored if key.rpartition(".")[2] not in FACTORS] == [*plain.state_dict()]
    plain.load_state_dict(merged_tensors(stored, scale=SCALE))
    assert torch.equal(embeddings(network, name), embeddings(plain, name))


@pytest.mark.parametrize("name", SMALL)
def test_merged_as_network_and_as_tensors_it_is_the_network_without_updates(name):
    network, plain = updated(name), small(name).create()
    expected = embeddings(network, name)
    by_tensors = merged_tensors(network.state_dict(), scale=SCALE)
    merged = merge_low_rank(copy.deepcopy(network))
    assert merged.state_dict().keys() == by_tensors.keys() == plain.state_dict().keys()
    for key, tensor in merged.state_dict().items():
        assert torch.equal(tensor, by_tensors[key])
        if tensor.ndim == 4:
            assert tensor.is_contiguous(memory_format=torch.channels_last)
    assert [type(m) for m in merged.modules()] == [type(m) for m in plain.modules()]
    assert torch.equal(embeddings(merged, name), expected)
    plain.load_state_dict(by_tensors)
    assert torch.equal(embeddings(plain, name), expected)
    folded = embeddings(fold_batch_norm(network), name)
    torch.testing.assert_close(folded, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert any(isinstance(m, (LowRankConv2d, LowRankLinear)) for m in network.modules())


@pytest.mark.parametrize("name", SMALL)
def test_every_factor_takes_part(name):
    """Where a network reads a layer's weight past its forward, too."""
    network = updated(name)
    torch.manual_seed(0)
    network(images(name)).square().sum().backward()
    factors = {k: p for k, p in network.named_parameters() if k.rpartition(".")[2] in FACTORS}
    assert len(factors) == 2 * len(layers_for_low_rank(small(name).create()))
    assert [key for key, factor in factors.items() if factor.grad is None] == []


def test_a_weight_is_the_stored_one_and_the_scaled_product_a_kernel_in_rows():
    layer = nn.Sequential(nn.Conv2d(2, 3, 3, bias=False))
    stored = layer[0].weight.detach().clone()
    add_low_rank(layer, ["0"], rank=64, scale=0.5)
    a, b = layer[0].lora_a, layer[0].lora_b
    assert (a.shape, b.shape) == ((3, 18), (3, 3)), "no larger rank than the layer has"
    nn.init.normal_(b)
    rows = (b @ a).view(3, 3, 3, 2)  # outputs, height, width, channels
    expected = stored + 0.5 * rows.permute(0, 3, 1, 2)
    torch.testing.assert_close(layer[0].weight, expected)


def test_under_autocast_the_sum_is_the_one_that_is_merged():
    network = updated()
    with torch.autocast("cpu", torch.bfloat16):
        weight = network.fc.weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, merge_low_rank(network).fc.weight)


def test_a_copy_and_another_dtype_take_their_updates_along():
    network = updated()
    double = copy.deepcopy(network).to(torch.float64)
    assert double.fc.weight.dtype == torch.float64
    torch.testing.assert_close(double.fc.weight.float(), network.fc.weight)
    with torch.no_grad():
        double.fc.lora_b.zero_()
    assert not torch.equal(double.fc.weight.float(), network.fc.weight)
