"""PReLU: torch's values and gradients, whatever the layout and dtype."""

import pytest
import torch
from torch import nn

from models import prelu
from models.prelu import PReLU


def both(x: torch.Tensor, weight: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    """(output, input gradient, weight gradient) of torch's PReLU and of ours."""
    found = []
    for kind in (nn.PReLU, PReLU):
        module = kind(len(weight)).to(weight.dtype)
        with torch.no_grad():
            module.weight.copy_(weight)
        input = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        output = module(input.to(weight.dtype) if kind is nn.PReLU else input)
        output.backward(torch.cos(torch.arange(output.numel()).view(output.shape)).to(output.dtype))
        found.append((output, input.grad, module.weight.grad))
    return found


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("shape", [(2, 5, 3, 4), (3, 64, 40, 40), (1, 1, 1, 1)])
def test_values_and_gradients_are_torchs(shape, memory_format):
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64).to(memory_format=memory_format)
    x[0, 0, 0, 0] = 0.0  # the kink belongs to the negative side
    theirs, ours = both(x, torch.randn(shape[1], dtype=torch.float64))
    for expected, found in zip(theirs, ours):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_bfloat16_inputs_give_float32_weight_gradients():
    torch.manual_seed(0)
    x = torch.randn(4, 32, 20, 20).bfloat16().to(memory_format=torch.channels_last)
    (_, _, expected), (output, grad, weight_grad) = both(x, torch.rand(32))
    assert (output.dtype, grad.dtype) == (torch.bfloat16, torch.bfloat16)
    assert grad.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(weight_grad, expected, rtol=0.02, atol=0.2)


@pytest.mark.parametrize("shape", [(2, 5, 3, 4), (3, 64, 90, 90), (4, 8, 1, 1)])
def test_in_place_it_gives_the_same_in_the_memory_of_its_input(shape, monkeypatch):
    monkeypatch.setattr(prelu, "_CHUNK_BYTES", 1 << 16)  # so that there are many
    torch.manual_seed(0)
    x = torch.randn(shape).to(memory_format=torch.channels_last)
    module = PReLU(shape[1]).requires_grad_(False)
    torch.nn.init.uniform_(module.weight, -1, 2)
    expected = module(x)
    module.in_place = True
    with torch.enable_grad():
        assert module(x).data_ptr() != x.data_ptr(), "it may be needed backward"
    with torch.no_grad():
        found = module(x)
    assert found.data_ptr() == x.data_ptr()
    assert torch.equal(found, expected)
    assert torch.equal(x, expected)
