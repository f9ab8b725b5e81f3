"""What is alive at once is what a real step and a real forward hold, and nothing is allocated."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models import Architecture, create_model, normalize
from models.checkpointing import checkpoint_blocks
from tests.training import tiny
from training.config import Config, override
from training.distributed import World
from training.planning import alive
from training.planning.alive import blocks_of_training
from training.planning.memory import predict
from training.step.learning import create_network
from training.step.precision import choose_precision

ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")
ALONE = World(rank=0, world_size=1, local_rank=0, local_world_size=1, device=CPU)
FP32 = choose_precision(CPU, "fp32")


def configured(*overrides: str) -> Config:
    return override(tiny.config(Path("data"), Path("run")), list(overrides))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_activations_are_what_a_real_batch_keeps(dtype):
    config, precision = configured("model.dropout=0.3"), choose_precision(CPU, dtype)
    backbone, batch, size = create_network(config), 24, config.data.image_size
    kept = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()

    images = torch.zeros(batch, size, size, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        precision.autocast(CPU),
    ):
        backbone(normalize(images, precision.compute_dtype))
    for tensor in (*backbone.parameters(), *backbone.buffers()):
        kept.pop(tensor.data_ptr(), None)
    found = sum(blocks_of_training(backbone, batch=batch, image_size=size, precision=precision))
    assert found == pytest.approx(sum(kept.values()), rel=0.05)


@pytest.mark.slow
def test_blocks_that_run_again_have_as_much_alive_as_a_real_step():
    """Counted at every operator of one, and with it what malloc is left with, on a CPU alone."""
    config = configured("model.checkpointing=true", "data.global_batch=96")
    network = create_network(config)
    checkpoint_blocks(network, config.architecture.family.stages)
    step = alive._ForwardBackward(network)
    for parameter in filter(lambda one: one.requires_grad, network.parameters()):
        parameter.register_post_accumulate_grad_hook(alive._forget_gradient)
    pixels = torch.zeros(96, 3, tiny.SIZE, tiny.SIZE).contiguous(memory_format=torch.channels_last)
    with alive.Living() as living:
        living.forget()
        step(pixels.clone(), FP32)
    found = alive.blocks_run_again(network, batch=96, image_size=tiny.SIZE, precision=FP32)
    assert sum(found) == pytest.approx(sum(living.peak), rel=0.05)
    on_cpu, on_gpu = (
        predict(
            config, replace(ALONE, device=torch.device(device)), FP32, num_classes=1000
        ).activations
        for device in ("cpu", "cuda")
    )
    assert on_gpu == sum(found)
    assert on_cpu == on_gpu + found.small // 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["iresnet100", "vit_s"])
def test_the_page_has_what_is_counted_with_and_without_checkpointing(name):
    """Of 32 images in bfloat16, in docs/networks.md; versions of torch keep not quite the same."""
    architecture, precision = Architecture(name), choose_precision(CPU, "bf16")
    with torch.device("meta"):
        network = architecture.create()
    sizes = {"batch": 32, "image_size": 112, "precision": precision}
    plain = sum(alive.blocks_of_training(network, **sizes))
    checkpoint_blocks(network, architecture.family.stages)
    again = sum(alive.blocks_run_again(network, **sizes))
    page = (ROOT / "docs/networks.md").read_text(encoding="utf-8")
    [row] = re.findall(rf"\| `{name}` \| ([\d,]+) MB \| ([\d,]+) MB \|", page)
    written = [float(size.replace(",", "")) for size in row]
    assert written == pytest.approx([plain / 1e6, again / 1e6], rel=0.05)


def test_activations_of_a_gpus_float16_are_found_on_any_machine():
    backbone = create_network(configured())
    half, bf16 = (
        blocks_of_training(
            backbone, batch=24, image_size=tiny.SIZE, precision=replace(FP32, compute_dtype=dtype)
        )
        for dtype in (torch.float16, torch.bfloat16)
    )
    assert half == bf16


def test_what_is_alive_at_once_is_found_without_a_gradient():
    """Of five maps of one size in a row two are alive beside the images, uint8 and normalized."""
    network = nn.Sequential(*[nn.AvgPool2d(1) for _ in range(5)])
    found = alive.blocks_of_inference(
        network, batch=8, image_size=32, precision=FP32, run_on=torch.device("cpu")
    )
    pixels = 8 * 3 * 32 * 32
    assert sum(found) == pixels + 3 * 4 * pixels


def test_a_forward_without_a_gradient_is_of_the_network_as_it_is_folded():
    """On a CPU it then overwrites its maps."""
    with torch.device("meta"):
        network = create_model("iresnet10")

    def largest(device: str) -> int:
        run_on = torch.device(device)
        return alive.blocks_of_inference(
            network, batch=64, image_size=112, precision=FP32, run_on=run_on
        ).large

    map_bytes = 64 * 64 * 112 * 112 * 4
    assert largest("cpu") < 3 * map_bytes
    assert largest("cuda") > 4 * map_bytes
