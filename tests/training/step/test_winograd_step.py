"""model.winograd as the backbone is built, and where it is refused."""

from __future__ import annotations

import pytest
import torch

from models.winograd import WinogradConv2d
from tests.training.step.test_networks_step import FP32
from tests.training.tiny import config as tiny_config
from training.config import Config, ConfigError, override
from training.distributed import World
from training.step import backbone as building
from training.step.backbone import create_backbone


def configured(*overrides: str) -> Config:
    network = ("model.name=iresnet10", "model.options={width: 0.5}", "model.compile=true")
    return override(tiny_config("data", "run"), [*network, *overrides])


def test_convolutions_are_exchanged_before_blocks_are_compiled(world, monkeypatch):
    """By blocks, on a single rank too."""
    compiled: list[bool] = []

    def compile_backbone(network: torch.nn.Module, *, alone: bool, **_: object) -> str:
        assert sum(type(module) is WinogradConv2d for module in network.modules()) == 1
        compiled.append(alone)
        return "compiled"

    monkeypatch.setattr(building, "compile_backbone", compile_backbone)
    _, about = create_backbone(configured("model.winograd=true"), world, FP32)
    assert "1 convolutions by Winograd's products" in about
    assert compiled == [False]


def test_without_a_compiler_it_is_refused():
    with pytest.raises(ConfigError, match=r"model\.winograd=True: expected false without"):
        configured("model.compile=false", "model.winograd=true")


@pytest.mark.parametrize(
    "others",
    [
        ("model.name=vit_t", "model.options={}", "model.width=1"),
        ("model.options={width: 0.25}",),
        ("model.lora_rank=4",),
    ],
    ids=["vit", "narrow", "low rank"],
)
def test_a_network_without_such_convolutions_is_refused(others, world):
    config = configured("model.winograd=true", *others)
    with pytest.raises(ConfigError, match=r"model\.winograd=True: .* none of whose"):
        create_backbone(config, world, FP32)


def test_on_a_gpu_it_is_refused():
    gpu = World(rank=0, world_size=1, local_rank=0, local_world_size=1, device=torch.device("cuda"))
    with pytest.raises(ConfigError, match=r"model\.winograd=True: expected false on a GPU"):
        create_backbone(configured("model.winograd=true"), gpu, FP32)
