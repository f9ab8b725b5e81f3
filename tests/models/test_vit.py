"""The vision transformer: arcface_torch's names and shapes, its formula, masks, skipped layers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import create_model
from models.vit import FORMS, Block, VisionTransformer
from tests.models.small import SIZE, images

BLOCK = {
    "attn.qkv.weight": (3, 1),  # in units of `dim`
    "attn.proj.weight": (1, 1),
    "mlp.fc1.weight": (4, 1),
    "mlp.fc2.weight": (1, 4),
    **{f"{name}.bias": (1,) for name in ("norm1", "norm2", "attn.proj", "mlp.fc2")},
    **{f"{name}.weight": (1,) for name in ("norm1", "norm2")},
    "mlp.fc1.bias": (4,),
}


@pytest.mark.parametrize("name", FORMS)
def test_state_dict_has_the_names_and_shapes_of_arcface_torch(name: str) -> None:
    with torch.device("meta"):
        state = create_model(name, embedding_dim=96).state_dict()
    dim, depth = FORMS[name].dim, FORMS[name].depth
    expected = {
        "pos_embed": (1, 144, dim),
        "mask_token": (1, 1, dim),
        "patch_embed.proj.weight": (dim, 3, 9, 9),
        "patch_embed.proj.bias": (dim,),
        "norm.weight": (dim,),
        "norm.bias": (dim,),
        "feature.0.weight": (dim, 144 * dim),
        "feature.2.weight": (96, dim),
    }
    for at, length in (("feature.1", dim), ("feature.3", 96)):
        norms = ("weight", "bias", "running_mean", "running_var")
        expected |= {f"{at}.num_batches_tracked": (), **{f"{at}.{n}": (length,) for n in norms}}
    for block in range(depth):
        for key, units in BLOCK.items():
            expected[f"blocks.{block}.{key}"] = tuple(unit * dim for unit in units)
    assert {key: tuple(tensor.shape) for key, tensor in state.items()} == expected


def test_the_first_weights_are_small() -> None:
    torch.manual_seed(0)
    model = create_model("vit", dim=256, depth=1)
    for name, tensor in model.state_dict().items():
        if tensor.ndim > 1 and "patch" not in name:
            assert tensor.std().item() == pytest.approx(0.02, rel=0.1), name
        elif name.endswith("bias") and "patch" not in name:
            assert not tensor.any(), name


def test_a_block_equals_its_formula() -> None:
    torch.manual_seed(0)
    block, x = Block(16, heads=4), torch.randn(2, 5, 16)
    state = block.state_dict()
    for value in state.values():
        nn.init.uniform_(value, -1.0, 1.0)

    def linear(y: Tensor, name: str) -> Tensor:
        return y @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(y: Tensor, name: str) -> Tensor:
        y = (y - y.mean(2, keepdim=True)) / (y.var(2, keepdim=True, correction=0) + 1e-5).sqrt()
        return y * state[f"{name}.weight"] + state[f"{name}.bias"]

    query, key, value = (norm(x, "norm1") @ state["attn.qkv.weight"].T).chunk(3, dim=2)
    heads = []
    for one in range(4):  # four features each
        q, k, v = (part[:, :, 4 * one : 4 * one + 4] for part in (query, key, value))
        heads.append((q @ k.transpose(1, 2) / 2).softmax(dim=2) @ v)
    y = x + linear(torch.cat(heads, dim=2), "attn.proj")
    expected = y + linear(linear(norm(y, "norm2"), "mlp.fc1").clamp(0, 6), "mlp.fc2")
    torch.testing.assert_close(block(x, None, None), expected, rtol=1e-4, atol=1e-4)


def vit(**options: float) -> VisionTransformer:
    torch.manual_seed(0)
    chosen = {"dim": 32, "depth": 3, "patch": 8, "mask_ratio": 0.0, "drop_path": 0.0, **options}
    return create_model("vit", embedding_dim=24, image_size=SIZE, **chosen).train()


def test_tokens_that_are_hidden_are_seen_by_no_block_and_stand_as_one_in_their_places() -> None:
    model, seen, norms = vit(mask_ratio=0.5, depth=1), [], []
    model.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.feature.register_forward_pre_hook(lambda _, inputs: norms.append(inputs[0]))
    nn.init.constant_(model.mask_token, 7.0)
    model(images())
    tokens = norms[0].unflatten(1, (16, 32))
    hidden = (tokens == 7.0).all(dim=2)
    assert seen[0].shape == (4, 8, 32)
    assert hidden.sum(dim=1).tolist() == [8] * 4, "half of each image's"
    assert len({tuple(row.tolist()) for row in hidden}) > 1, "others of each image"
    everything = model.patch_embed(images()) + model.pos_embed
    for image in range(4):  # in any order, those that are not hidden
        rest = everything[image][~hidden[image]]
        distances = torch.cdist(rest, seen[0][image])
        assert distances.min(dim=1).values.max() < 1e-4
    model.eval()(images())
    assert seen[1].shape == (4, 16, 32)


@pytest.mark.parametrize("mask_ratio", [0.0, 0.05, 0.5])
def test_all_that_is_trained_has_a_gradient_whatever_is_hidden(mask_ratio: float) -> None:
    """Of 16 patches a twentieth hides one, as all is rounded to what is seen."""
    model = vit(mask_ratio=mask_ratio, drop_path=0.1)
    (model(images()) * torch.randn(4, 24)).sum().backward()
    named = model.named_parameters()
    assert {n for n, p in named if p.requires_grad != (p.grad is not None)} == set()
    assert model.mask_token.requires_grad == (mask_ratio > 0)


def test_skipped_layers_add_nothing_and_the_others_keep_the_mean() -> None:
    model, factors = vit(drop_path=0.5), []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda _, inputs: factors.append(inputs[1:]))
    model(images(256))
    assert factors[0] == (None, None), "the first block is never skipped"
    for rate, drawn in zip((0.25, 0.5), factors[1:]):
        for factor in drawn:
            keep = 1 - rate
            assert set(factor.flatten().tolist()) == {0.0, torch.tensor(1 / keep).item()}
            assert factor.mean().item() == pytest.approx(1.0, abs=0.25)
        assert not torch.equal(*drawn), "each layer for itself"
    factors.clear()
    model.eval()(images())
    assert factors == [(None, None)] * 3
    block, x = model.blocks[2], torch.randn(2, 16, 32)
    skipped = torch.tensor([0.0, 1.0]).view(2, 1, 1)
    torch.testing.assert_close(block(x, skipped, skipped)[0], x[0])
    torch.testing.assert_close(block(x, skipped, skipped)[1], block(x, None, None)[1])


def test_what_is_drawn_follows_the_seed() -> None:
    model, found = vit(mask_ratio=0.5, drop_path=0.5).train(), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(model(images()))
    assert torch.equal(found[0], found[1])
    assert F.cosine_similarity(found[0], found[2]).max() < 0.999


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("dim", 33),
        ("depth", 0),
        ("heads", 0),
        ("patch", 33),
        ("mask_ratio", 0.99),
        ("drop_path", 1),
    ],
)
def test_bad_options_are_refused_by_name(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{option} is {value}"):
        vit(**{option: value})
