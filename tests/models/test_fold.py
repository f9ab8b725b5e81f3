"""Folding BatchNorm changes what an eval forward costs and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from models import create_model, fold_batch_norm


def trained_model(name: str = "iresnet18") -> nn.Module:
    """Small, its statistics, scales and shifts away from their defaults, in train mode."""
    torch.manual_seed(0)
    model = create_model(name, embedding_dim=64, width=0.25, image_size=32)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            for value in (module.weight, module.running_var):
                nn.init.uniform_(value, 0.5, 2.0)
            for value in (module.bias, module.running_mean):
                nn.init.normal_(value)
    return model.train()


def images(batch: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(batch, 3, 32, 32, generator=generator) * 2 - 1
    return pixels.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["iresnet10", "iresnet18"])
def test_a_folded_network_gives_the_same_embeddings(name: str) -> None:
    model = trained_model(name)
    folded = fold_batch_norm(model)
    with torch.no_grad():
        expected = model.eval()(images())
        largest = expected.abs().max()
        torch.testing.assert_close(
            folded(images()) / largest, expected / largest, rtol=0, atol=1e-5
        )


def test_only_what_padding_or_another_layer_keeps_apart_is_left() -> None:
    folded = fold_batch_norm(trained_model("iresnet10"))
    norms = (nn.BatchNorm1d, nn.BatchNorm2d)
    left = [name for name, module in folded.named_modules() if isinstance(module, norms)]
    assert left == [*(f"layer{stage}.0.bn1" for stage in (1, 2, 3, 4)), "bn2"]


def test_the_model_itself_is_left_as_it_was() -> None:
    model = trained_model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    folded = fold_batch_norm(model)
    with torch.no_grad():
        folded(images())
        for parameter in folded.parameters():
            parameter.zero_()
    assert model.training
    assert all(p.requires_grad for name, p in model.named_parameters() if name != "features.weight")
    after = model.state_dict()
    assert list(after) == list(before)
    for key, value in before.items():
        assert torch.equal(after[key], value), key


def test_the_copy_is_for_eval_only_and_stays_channels_last() -> None:
    folded = fold_batch_norm(trained_model())
    assert not any(module.training for module in folded.modules())
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    for module in folded.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.is_contiguous(memory_format=torch.channels_last)


def test_the_copy_of_a_compiled_network_is_not_compiled() -> None:
    """Eval has other batch sizes, each of which would be compiled."""

    def compiler(_graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> None:
        raise AssertionError("compiled")

    model = trained_model("iresnet10")
    model.compile(backend=compiler)
    for block in model.layer1:
        block.compile(backend=compiler)
    with torch.no_grad():
        assert fold_batch_norm(model)(images()).shape == (4, 64)
