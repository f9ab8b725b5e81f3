"""EdgeFace: the published names and shapes, its first weights, and its own layers' formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from models import create_model
from models.edgeface import FORMS, ChannelAttention, LowRankLinear, Positions

# (blocks before the last, kernel, parts of the channels that the last block has, if it attends)
STAGES = [(3, 3, 0), (2, 5, 2), (8, 7, 3), (2, 9, 4)]


def linear(at: str, inputs: int, outputs: int, rank: float | None) -> dict[str, tuple[int, ...]]:
    if rank is None:
        return {f"{at}.weight": (outputs, inputs), f"{at}.bias": (outputs,)}
    inner = int(min(inputs, outputs) * rank)
    return {
        f"{at}.linear1.weight": (inner, inputs),
        f"{at}.linear2.weight": (outputs, inner),
        f"{at}.linear2.bias": (outputs,),
    }


def both(at: str, *weight: int) -> dict[str, tuple[int, ...]]:
    return {f"{at}.weight": weight, f"{at}.bias": weight[:1]}


def shapes(name: str) -> dict[str, tuple[int, ...]]:
    form = FORMS[name]
    rank, channels = form.rank, form.channels
    found = both("model.stem.0", channels[0], 3, 4, 4) | both("model.stem.1", channels[0])
    for stage, (c, (plain, kernel, parts)) in enumerate(zip(channels, STAGES)):
        at = f"model.stages.{stage}"
        if stage:
            before = channels[stage - 1]
            found |= both(f"{at}.downsample.0", before)
            found |= both(f"{at}.downsample.1", c, before, 2, 2)
        for number in range(plain + (parts > 0)):
            block = f"{at}.blocks.{number}"
            found |= both(f"{block}.norm", c) | {f"{block}.gamma": (c,)}
            found |= linear(f"{block}.mlp.fc1", c, 4 * c, rank)
            found |= linear(f"{block}.mlp.fc2", 4 * c, c, rank)
            if number < plain:
                found |= both(f"{block}.conv_dw", c, 1, kernel, kernel)
                continue
            for part in range(parts - 1):
                found |= both(f"{block}.convs.{part}", math.ceil(c / parts), 1, 3, 3)
            if stage == 1:
                found |= both(f"{block}.pos_embd.token_projection", c, 64, 1, 1)
            found |= both(f"{block}.norm_xca", c) | {f"{block}.gamma_xca": (c,)}
            found |= {f"{block}.xca.temperature": (form.heads, 1, 1)}
            found |= linear(f"{block}.xca.qkv", c, 3 * c, rank)
            found |= linear(f"{block}.xca.proj", c, c, rank)
    last = channels[-1]
    return found | both("model.head.norm", last) | linear("model.head.fc", last, 96, rank)


@pytest.mark.parametrize("name", FORMS)
def test_state_dict_has_the_published_names_and_shapes(name: str) -> None:
    with torch.device("meta"):
        state = create_model(name, embedding_dim=96).state_dict()
    assert {key: tuple(tensor.shape) for key, tensor in state.items()} == shapes(name)


@pytest.mark.parametrize(("name", "as_torch"), [("edgeface_xs", True), ("edgeface_base", False)])
def test_the_first_weights(name: str, as_torch: bool) -> None:
    """Small; but products of low rank begin as torch's layers do, as they are put in later."""
    torch.manual_seed(0)
    model = create_model(name)
    for key, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.weight.numel() > 2000:
            inputs = module.weight[0].numel()
            torchs = isinstance(module, nn.Linear) and as_torch
            expected = (1 / (3 * inputs)) ** 0.5 if torchs else 0.0176  # 0.02, cut off at twice it
            assert module.weight.std().item() == pytest.approx(expected, rel=0.08), key
    for key, parameter in model.named_parameters():
        if "gamma" in key:
            assert (parameter == 1e-6).all(), key


def test_attention_between_channels_equals_its_formula() -> None:
    torch.manual_seed(0)
    attention, x = ChannelAttention(6, 2, nn.Linear), torch.randn(2, 5, 6)
    nn.init.uniform_(attention.temperature, 0.5, 2.0)
    query, key, value = attention.qkv(x).chunk(3, dim=2)
    mixed = torch.zeros_like(x)
    for image in range(2):
        for head in range(2):
            channels = range(3 * head, 3 * head + 3)
            for a in channels:
                cosines = [
                    torch.cosine_similarity(query[image, :, a], key[image, :, b], dim=0)
                    for b in channels
                ]
                logits = torch.stack(cosines) * attention.temperature[head].flatten()
                for weight, b in zip(logits.softmax(0), channels):
                    mixed[image, :, a] += weight * value[image, :, b]
    torch.testing.assert_close(attention(x), attention.proj(mixed), rtol=1e-4, atol=1e-5)


def test_positions_are_sines_and_cosines_of_rows_and_columns() -> None:
    positions, height, width = Positions(64, waves=4), 3, 5
    nn.init.zeros_(positions.token_projection.bias)
    nn.init.zeros_(positions.token_projection.weight)
    for channel in range(8):  # as they are
        positions.token_projection.weight.data[channel, channel] = 1.0
    found = positions(height, width)
    assert found.shape == (1, 64, height, width)
    for row in range(height):
        for column in range(width):
            for first, place, length in ((0, row, height), (4, column, width)):
                turn = 2 * math.pi * (place + 1) / length
                expected = [math.sin(turn), math.cos(turn), math.sin(turn / 100)]
                expected.append(math.cos(turn / 100))
                waves = found[0, first : first + 4, row, column].tolist()
                assert waves == pytest.approx(expected, abs=1e-4)


def test_a_product_of_low_rank_is_one_of_two() -> None:
    layer, x = LowRankLinear(10, 40, share=0.5), torch.randn(3, 10)
    assert (layer.linear1.out_features, layer.linear1.bias) == (5, None)
    torch.testing.assert_close(
        layer(x), x @ (layer.linear2.weight @ layer.linear1.weight).T + layer.linear2.bias
    )
