"""Networks of timm, by a stand-in with its interface: timm itself would bring torchvision."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from facestream import UserError
from models import Architecture, create_model, fold_batch_norm
from models.input import Input

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE = 32


class NormAct(nn.BatchNorm2d):
    """As timm's BatchNormAct2d: a BatchNorm that is one thing more."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu()


class Convolutional(nn.Module):
    """Takes any size, and pools what its last layer makes of `num_features` channels."""

    num_features, head_hidden_size = 8, 12

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        assert num_classes == 0
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4, bias=False), NormAct(8))
        self.hidden = nn.Linear(8, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.hidden(self.stem(x).mean((2, 3)))


class OfFixedSize(nn.Module):
    num_features = 6

    def __init__(self, num_classes: int, img_size: int = 224) -> None:
        super().__init__()
        assert num_classes == 0
        if img_size % 16:
            raise AssertionError(f"{img_size} is no multiple of 16")
        self.pos_embed = nn.Parameter(torch.zeros(1, (img_size // 16) ** 2, 6))
        self.patches = nn.Conv2d(3, 6, 16, stride=16)

    def forward(self, x: Tensor) -> Tensor:
        return (self.patches(x).flatten(2).transpose(1, 2) + self.pos_embed).mean(1)


NETWORKS = {"convnet_nano": Convolutional, "vit_tiny": OfFixedSize}


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """What of timm's interface is used here, as timm 1.0 has it."""
    module = ModuleType("timm")
    module.__spec__ = SimpleNamespace(name="timm")

    def create_model(name: str, pretrained: bool = False, **kwargs: int) -> nn.Module:
        assert not pretrained
        return NETWORKS[name](**kwargs)

    def get_pretrained_cfg(name: str) -> SimpleNamespace:
        fixed = NETWORKS[name] is OfFixedSize
        size = (3, 224, 224)
        return SimpleNamespace(mean=MEAN, std=STD, fixed_input_size=fixed, input_size=size)

    module.create_model, module.get_pretrained_cfg = create_model, get_pretrained_cfg
    module.is_model = lambda name: name in NETWORKS
    module.list_models = lambda pattern="*": [n for n in NETWORKS if pattern.strip("*") in n]
    monkeypatch.setitem(sys.modules, "timm", module)
    return module


every_network = pytest.mark.parametrize("name", NETWORKS)


def images(batch: int = 4) -> Tensor:
    torch.manual_seed(1)
    return torch.randint(0, 256, (batch, 3, SIZE, SIZE), dtype=torch.uint8)


@every_network
def test_it_embeds_and_trains_as_others_do(timm: ModuleType, name: str) -> None:
    model = create_model(f"timm/{name}", embedding_dim=24, image_size=SIZE)
    with torch.autocast("cpu", torch.bfloat16):
        embeddings = model(Input(size=SIZE)(images()))
    assert (embeddings.shape, embeddings.dtype) == ((4, 24), torch.float32)
    (embeddings * torch.randn(4, 24)).sum().backward()
    frozen = {"scale", "shift", "features.weight"}
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == frozen
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    folded = fold_batch_norm(model)
    with torch.no_grad():
        expected = model.eval()(Input(size=SIZE)(images()))
        torch.testing.assert_close(folded(Input(size=SIZE)(images())), expected)


@every_network
def test_its_network_gets_the_pixels_that_it_was_made_for(timm: ModuleType, name: str) -> None:
    model = create_model(f"timm/{name}", embedding_dim=24, image_size=SIZE)
    seen: list[Tensor] = []
    model.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(Input(size=SIZE)(images()))
    as_timm_does = (images().double() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(
        STD
    ).view(3, 1, 1)
    torch.testing.assert_close(seen[0].double(), as_timm_does, rtol=1e-5, atol=1e-5)


def test_positions_go_without_weight_decay(timm: ModuleType) -> None:
    architecture = Architecture("timm/vit_tiny", 24, SIZE)
    network = architecture.create()
    (found,) = architecture.family.undecayed_in(network)
    assert found is network.network.pos_embed


def test_what_timm_does_not_have_or_cannot_build_is_said(timm: ModuleType) -> None:
    with pytest.raises(UserError, match=r"no network 'convnet_huge': .* such as convnet_nano"):
        Architecture("timm/convnet_huge")
    with pytest.raises(UserError, match="vit_tiny for images of 36 pixels: AssertionError: 36"):
        create_model("timm/vit_tiny", image_size=36)
    with pytest.raises(UserError, match="has no option width"):
        create_model("timm/vit_tiny", width=0.5)


def test_without_timm_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install timm"):
        Architecture("timm/convnet_nano")
