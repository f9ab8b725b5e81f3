"""MobileFaceNet: arcface_torch's names and shapes, its first weights, and a block's formula."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import create_model
from models.mobilefacenet import Bottleneck

# Of the layers in order: (in, hidden, out) of a bottleneck with stride 2, (channels, hidden,
# blocks) of a stage; before them a convolution of stride 2, and one in 64 groups or a stage.
MBF = (128, None, [(128, 128, 128), (128, 128, 4), (128, 256, 256), (256, 256, 6)])
LARGE = (256, (256, 128, 2), [(256, 128, 256), (256, 128, 8), (256, 256, 512), (512, 256, 12)])
LAST = {"mbf": [(256, 512, 256), (256, 256, 2)], "mbf_large": [(512, 512, 512), (512, 256, 4)]}


def bottleneck(at: str, channels: int, hidden: int, out: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{at}.layers.0.layers.0.weight": (hidden, channels, 1, 1),
        f"{at}.layers.1.layers.0.weight": (hidden, 1, 3, 3),
        f"{at}.layers.2.layers.0.weight": (out, hidden, 1, 1),
    }


def convolutions(name: str) -> dict[str, tuple[int, ...]]:
    first, stage, layers = {"mbf": MBF, "mbf_large": LARGE}[name]
    shapes: dict[str, tuple[int, ...]] = {"layers.0.layers.0.weight": (first, 3, 3, 3)}
    if stage is None:
        shapes["layers.1.layers.0.weight"] = (first, first // 64, 3, 3)
    else:
        channels, hidden, blocks = stage
        for block in range(blocks):
            shapes |= bottleneck(f"layers.1.layers.{block}", channels, hidden, channels)
    for number, (a, b, c) in enumerate([*layers, *LAST[name]], start=2):
        if number % 2 == 0:
            shapes |= bottleneck(f"layers.{number}", a, b, c)
        else:
            for block in range(c):
                shapes |= bottleneck(f"layers.{number}.layers.{block}", a, b, a)
    last = LAST[name][0][2]
    shapes["conv_sep.layers.0.weight"] = (512, last, 1, 1)
    shapes["features.layers.0.layers.0.weight"] = (512, 1, 7, 7)
    return shapes


@pytest.mark.parametrize("name", LAST)
def test_state_dict_has_the_names_and_shapes_of_arcface_torch(name: str) -> None:
    with torch.device("meta"):
        state = create_model(name).state_dict()
    expected = convolutions(name)
    assert {k: tuple(t.shape) for k, t in state.items() if t.ndim == 4} == expected
    norms = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    others = {"features.layers.2.weight", *(f"features.layers.3.{key}" for key in norms)}
    for key in expected:
        before = key.removesuffix(".0.weight")
        others |= {f"{before}.1.{norm}" for norm in norms}
        # A bottleneck's last convolution and the one over the whole map have no PReLU.
        linear = before.startswith("features") or before.endswith(".layers.2.layers")
        if not linear or before == "layers.2.layers":
            others |= {f"{before}.2.weight"}
    assert state.keys() - expected.keys() == others
    assert state["features.layers.2.weight"].shape == (512, 512)


def test_the_first_weights_are_he_et_als_over_the_outputs() -> None:
    torch.manual_seed(0)
    for module in create_model("mbf").modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 10_000:
            outputs = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx((2 / outputs) ** 0.5, rel=0.05)


@pytest.mark.parametrize("residual", [False, True])
def test_a_bottleneck_equals_its_formula(residual: bool) -> None:
    torch.manual_seed(0)
    block, x = Bottleneck(8, 8, hidden=16, residual=residual).eval(), torch.randn(2, 8, 6, 6)
    state = block.state_dict()
    for name, value in state.items():
        if value.is_floating_point():
            nn.init.uniform_(value, *((0.5, 2.0) if "var" in name else (-1.0, 1.0)))

    def norm(y: Tensor, at: str) -> Tensor:
        mean, var, scale, shift = (
            state[f"layers.{at}.1.{key}"].view(1, -1, 1, 1)
            for key in ("running_mean", "running_var", "weight", "bias")
        )
        return (y - mean) / (var + 1e-5).sqrt() * scale + shift

    def prelu(y: Tensor, at: str) -> Tensor:
        return torch.where(y > 0, y, y * state[f"layers.{at}.2.weight"].view(1, -1, 1, 1))

    weights = [state[f"layers.{n}.layers.0.weight"] for n in (0, 1, 2)]
    y = prelu(norm(F.conv2d(x, weights[0]), "0.layers"), "0.layers")
    y = F.conv2d(y, weights[1], stride=1 if residual else 2, padding=1, groups=16)
    y = norm(F.conv2d(prelu(norm(y, "1.layers"), "1.layers"), weights[2]), "2.layers")
    torch.testing.assert_close(block(x), x + y if residual else y, rtol=1e-4, atol=1e-5)
