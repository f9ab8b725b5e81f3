from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import create_model
from models.iresnet import IBasicBlock, SelfAttention, SqueezeExcitation


def small_model(**options: float) -> nn.Module:
    """The real structure at little work: 8 to 64 channels, images of 32 x 32 pixels."""
    torch.manual_seed(0)
    return create_model("iresnet18", embedding_dim=64, width=0.25, image_size=32, **options)


def small_images(batch: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(batch, 3, 32, 32, generator=generator) * 2 - 1
    return images.contiguous(memory_format=torch.channels_last)


def batch_norm_keys(prefix: str) -> set[str]:
    names = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return {f"{prefix}.{name}" for name in names}


def test_state_dict_has_the_keys_and_shapes_of_arcface_torch() -> None:
    expected = {"conv1.weight", "prelu.weight", "fc.weight", "fc.bias"}
    for name in ("bn1", "bn2", "features"):
        expected |= batch_norm_keys(name)
    for block in (f"layer{stage}.{i}" for stage in (1, 2, 3, 4) for i in (0, 1)):
        expected |= {f"{block}.conv1.weight", f"{block}.prelu.weight", f"{block}.conv2.weight"}
        for name in ("bn1", "bn2", "bn3"):
            expected |= batch_norm_keys(f"{block}.{name}")
    for stage in (1, 2, 3, 4):
        expected |= {f"layer{stage}.0.downsample.0.weight"}
        expected |= batch_norm_keys(f"layer{stage}.0.downsample.1")

    with torch.device("meta"):
        state = create_model("iresnet18").state_dict()
    assert set(state) == expected
    assert state["layer3.0.bn1.weight"].shape == (128,)
    assert state["layer3.0.conv1.weight"].shape == (256, 128, 3, 3)
    assert state["layer3.0.downsample.0.weight"].shape == (256, 128, 1, 1)
    assert state["layer3.1.prelu.weight"].shape == (256,)
    assert state["fc.weight"].shape == (512, 512 * 7 * 7)


@pytest.mark.parametrize(("in_channels", "stride"), [(8, 2), (16, 1)], ids=["first", "later"])
def test_a_block_equals_its_formula(in_channels: int, stride: int) -> None:
    """In eval mode, with statistics and slopes away from their defaults, step by step."""
    torch.manual_seed(0)
    block = IBasicBlock(in_channels, 16, stride=stride).eval()
    state = block.state_dict()
    for name, value in state.items():
        if value.is_floating_point():
            nn.init.uniform_(value, *((0.5, 2.0) if "var" in name else (-1.0, 1.0)))
    x = torch.randn(2, in_channels, 6, 6)

    def column(name: str) -> Tensor:
        return state[name].view(1, -1, 1, 1)

    def batch_norm(y: Tensor, name: str) -> Tensor:
        centered = y - column(f"{name}.running_mean")
        scaled = centered / (column(f"{name}.running_var") + 1e-5).sqrt()
        return scaled * column(f"{name}.weight") + column(f"{name}.bias")

    y = F.conv2d(batch_norm(x, "bn1"), state["conv1.weight"], padding=1)
    y = batch_norm(y, "bn2")
    y = torch.where(y > 0, y, y * column("prelu.weight"))
    y = batch_norm(F.conv2d(y, state["conv2.weight"], stride=stride, padding=1), "bn3")
    shortcut = x
    if stride == 2:
        # A 1x1 convolution of stride 2 is a matrix over the channels of every other pixel.
        matrix = state["downsample.0.weight"].flatten(1)
        shortcut = torch.einsum("oi,bihw->bohw", matrix, x[:, :, ::2, ::2])
        shortcut = batch_norm(shortcut, "downsample.1")
    torch.testing.assert_close(block(x), y + shortcut, rtol=1e-5, atol=1e-4)


def test_the_head_of_the_network_flattens_in_channel_order() -> None:
    """Channels_last strides must not leak into fc: published weights expect C, H, W order."""
    model = small_model().eval()
    seen: dict[str, Tensor] = {}
    model.bn2.register_forward_hook(lambda _m, _i, out: seen.update(map=out.detach()))
    embeddings = model(small_images())
    flat = torch.tensor(seen["map"].tolist()).reshape(4, -1)  # (B, C * H * W)
    fc = flat @ model.fc.weight.T + model.fc.bias
    expected = fc / (1 + 1e-5) ** 0.5  # fresh statistics: mean 0, variance 1
    torch.testing.assert_close(embeddings, expected, rtol=1e-4, atol=1e-3)


def test_under_autocast_the_last_layers_run_in_float32() -> None:
    model = small_model()
    seen: dict[str, torch.dtype] = {}
    for name in ("bn2", "fc", "features"):
        model.get_submodule(name).register_forward_hook(
            lambda _m, _i, out, name=name: seen.update({name: out.dtype})
        )
    with torch.autocast("cpu", torch.bfloat16):
        model(small_images())
    assert seen == {"bn2": torch.bfloat16, "fc": torch.float32, "features": torch.float32}


def test_dropout_acts_in_training_only() -> None:
    plain, dropping = small_model(dropout=0.0), small_model(dropout=0.5)
    with torch.no_grad():
        assert not torch.allclose(plain(small_images()), dropping(small_images()), atol=0.1)


def test_initialization_is_that_of_arcface_torch() -> None:
    torch.manual_seed(0)
    model = create_model("iresnet18", width=0.5, image_size=32)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 10_000:
            assert abs(module.weight.mean().item()) < 0.005
            assert module.weight.std().item() == pytest.approx(0.1, rel=0.05)
        elif isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            assert module.eps == 1e-5
            assert module.weight.eq(1).all()
            assert module.bias.eq(0).all()
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen == ["features.weight"]


def test_convolution_weights_are_channels_last_and_stay_so_after_loading() -> None:
    model = small_model()
    model.load_state_dict({k: v.contiguous() for k, v in model.state_dict().items()}, strict=True)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.is_contiguous(memory_format=torch.channels_last)


def test_in_float64_it_trains_and_agrees_with_float32() -> None:
    model = small_model().train()
    expected = model(small_images())
    embeddings = model.double()(small_images().double())
    torch.testing.assert_close(embeddings.float(), expected, rtol=1e-3, atol=1e-3)
    embeddings.sum().backward()
    assert model.conv1.weight.grad.dtype == torch.float64


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'r50'.*iresnet18, iresnet34, iresnet50"):
        create_model("r50")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("width", 0.3),
        ("width", 0.125),
        ("width", 0.0),
        ("width", -1.0),
        ("width", float("nan")),
        ("image_size", 100),
        ("image_size", 0),
        ("embedding_dim", 0),
        ("dropout", 1.0),
        ("dropout", -0.1),
        ("se", 1),
        ("attention", [5]),
        ("attention", [4, 3]),
        ("attention", 4),
        ("blocks", [1, 1, 1]),
        ("blocks", [1, 1, 0, 1]),
        ("blocks", [1, 1, 1.5, 1]),
    ],
)
def test_bad_options_are_refused_by_name(option: str, value: object) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{option} is {value}")):
        create_model("iresnet", **{option: value})


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 3, 48, 48),
        torch.zeros(2, 32, 32, 3),
        torch.zeros(2, 3, 32, 32, dtype=torch.uint8),
    ],
    ids=["another size", "HWC", "not normalized"],
)
def test_images_the_network_cannot_take_are_refused(images: Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected \(B, 3, 32, 32\) in a floating dtype"):
        small_model()(images)


def test_attention_adds_nothing_at_first_and_then_its_share() -> None:
    """Against the formula: softmax of all products of queries and keys, unscaled."""
    torch.manual_seed(0)
    attention, x = SelfAttention(16), torch.randn(2, 16, 3, 5)
    assert torch.equal(attention(x), x)
    nn.init.constant_(attention.gamma, 0.5)
    query, key, value = (
        torch.einsum("oc,bcn->bon", conv.weight[:, :, 0, 0], x.flatten(2)) + conv.bias[:, None]
        for conv in (attention.query_conv, attention.key_conv, attention.value_conv)
    )
    weights = (query.transpose(1, 2) @ key).softmax(dim=-1)  # (B, N, N)
    expected = x.flatten(2) + 0.5 * value @ weights.transpose(1, 2)
    torch.testing.assert_close(attention(x).flatten(2), expected, rtol=1e-4, atol=1e-5)


def test_squeeze_and_excitation_scales_each_channel_by_what_all_decide() -> None:
    torch.manual_seed(0)
    excitation, x = SqueezeExcitation(32), torch.randn(2, 32, 3, 5)
    first, second = (conv.weight[:, :, 0, 0] for conv in (excitation.fc1, excitation.fc2))
    factor = (x.mean((2, 3)) @ first.T).clamp(min=0) @ second.T
    torch.testing.assert_close(excitation(x), x * factor.sigmoid()[:, :, None, None])


@pytest.mark.parametrize(("size", "inputs"), [(128, 8 * 8), (224, 14 * 14)])
def test_larger_images_make_a_larger_last_layer(size: int, inputs: int) -> None:
    with torch.device("meta"):
        model = create_model("iresnet18", image_size=size)
    assert model.fc.weight.shape == (512, 512 * inputs)


def test_names_beside_arcface_torchs_are_those_of_elasticface_and_hstfacenet() -> None:
    with torch.device("meta"):
        state = create_model("iresnet", blocks=[1, 1, 1, 1], se=True, attention=[3, 4]).state_dict()
        plain = create_model("iresnet10").state_dict()
    shapes = {name: tuple(state[name].shape) for name in state.keys() - plain.keys()}
    found = {name: shape for name, shape in shapes.items() if not name.startswith("layer")}
    assert found.pop("attn1.gamma") == found.pop("attn2.gamma") == (1,)
    assert found.pop("attn1.query_conv.weight") == (32, 256, 1, 1)
    assert found.pop("attn2.value_conv.weight") == (512, 512, 1, 1)
    assert found.keys() == {
        f"attn{n}.{part}_conv.{kind}"
        for n in (1, 2)
        for part in ("query", "key", "value")
        for kind in ("weight", "bias")
    } - {"attn1.query_conv.weight", "attn2.value_conv.weight"}
    assert shapes["layer4.0.se_block.fc1.weight"] == (32, 512, 1, 1)
    assert shapes["layer4.0.se_block.fc2.weight"] == (512, 32, 1, 1)
