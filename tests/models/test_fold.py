"""Folding BatchNorm changes what an eval forward costs and nothing else."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from models import create_model, fold_batch_norm
from tests.models.small import SMALL, trained

CPU = torch.device("cpu")
Device = torch.device | None
every_way = pytest.mark.parametrize("run_on", [None, CPU])


def trained_model(name: str = "iresnet18") -> nn.Module:
    """Small, its statistics, scales and shifts away from their defaults, in train mode."""
    model = create_model(name, embedding_dim=64, width=0.25, image_size=32)
    away_from_defaults(model)
    return model.train()


def away_from_defaults(model: nn.Module) -> None:
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            for value in (module.weight, module.running_var):
                nn.init.uniform_(value, 0.5, 2.0)
            for value in (module.bias, module.running_mean):
                nn.init.normal_(value)


def images(batch: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(batch, 3, 32, 32, generator=generator) * 2 - 1
    return pixels.contiguous(memory_format=torch.channels_last)


def far(found: Tensor, expected: Tensor) -> float:
    """By how much they differ at most, as a share of the largest."""
    return float((found - expected).abs().max() / expected.abs().max())


@every_way
@pytest.mark.parametrize("name", SMALL)
def test_a_folded_network_gives_the_same_embeddings(name: str, run_on: Device) -> None:
    model = trained(name)
    folded = fold_batch_norm(model, run_on=run_on)
    model.eval()
    with torch.no_grad():
        assert far(folded(images()), model(images())) < 1e-5
        folded, model, pixels = folded.double(), model.double(), images().double()
        assert far(folded(pixels), model(pixels)) < 1e-6  # its weights were folded in float32
        pixels = pixels.contiguous()
        assert far(folded(pixels), model(pixels)) < 1e-6, "in NCHW"


@pytest.mark.parametrize("size", [16, 48])
def test_borders_are_right_where_a_map_is_a_single_pixel_and_where_it_is_odd(size: int) -> None:
    model = create_model("iresnet18", embedding_dim=64, width=0.25, image_size=size)
    away_from_defaults(model)
    pixels = torch.rand(4, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    folded = fold_batch_norm(model, run_on=CPU)
    with torch.no_grad():
        assert far(folded(pixels), model.eval()(pixels)) < 1e-5


def test_channels_without_a_scale_are_folded_too() -> None:
    """Training leaves some at zero, whose shift divided by their scale is no number."""
    model = trained_model()
    for block in model.layer2:
        nn.init.zeros_(block.bn1.weight)
    folded = fold_batch_norm(model, run_on=CPU)
    with torch.no_grad():
        assert far(folded(images()), model.eval()(images())) < 1e-5


def test_only_what_padding_or_another_layer_keeps_apart_is_left() -> None:
    folded = fold_batch_norm(trained_model("iresnet10"))
    norms = (nn.BatchNorm1d, nn.BatchNorm2d)
    left = [name for name, module in folded.named_modules() if isinstance(module, norms)]
    assert left == [*(f"layer{stage}.0.bn1" for stage in (1, 2, 3, 4)), "bn2"]
    folded = fold_batch_norm(trained_model("iresnet10"), run_on=CPU)
    assert [name for name, module in folded.named_modules() if isinstance(module, norms)] == ["bn2"]


def test_a_network_without_memory_is_folded_for_a_cpu_where_it_is() -> None:
    with torch.device("meta"):
        model = trained_model("iresnet10")
        folded = fold_batch_norm(model, run_on=CPU)
    assert all(parameter.is_meta for parameter in folded.parameters())
    expected = fold_batch_norm(trained_model("iresnet10"), run_on=CPU).state_dict()
    found = {name: tensor.shape for name, tensor in folded.state_dict().items()}
    assert found == {name: tensor.shape for name, tensor in expected.items()}


def test_nothing_is_overwritten_where_a_gradient_is_asked_for() -> None:
    model, pixels = trained_model().eval(), images().requires_grad_()
    expected = torch.autograd.grad(model(pixels).square().sum(), pixels)[0]
    folded = fold_batch_norm(model, run_on=CPU)
    found = torch.autograd.grad(folded(pixels).square().sum(), pixels)[0]
    assert far(found, expected) < 1e-4


def test_one_folded_network_embeds_on_several_threads() -> None:
    folded = fold_batch_norm(trained_model(), run_on=CPU)

    def embedded(batch: int) -> Tensor:
        with torch.no_grad():
            return folded(images(batch))

    expected = embedded(8)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(embedded, [8] * 16):
            assert torch.equal(found, expected)


@every_way
def test_the_model_itself_is_left_as_it_was(run_on: Device) -> None:
    model = trained_model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    folded = fold_batch_norm(model, run_on=run_on)
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


@every_way
def test_the_copy_is_for_eval_only_and_stays_channels_last(run_on: Device) -> None:
    folded = fold_batch_norm(trained_model(), run_on=run_on)
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
