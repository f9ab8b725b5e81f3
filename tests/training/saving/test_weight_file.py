"""Files of weights: taken under any keys, refused in a line, and no bytes end in a trace."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models import Architecture
from tests.models.small import DIM, SMALL, as_recognized, small
from training.arcface_torch.reading import read_arcface_torch
from training.arcface_torch.weights import ArcFaceTorchError
from training.saving.reading import open_weights
from training.saving.weight_file import WeightsError, read_weight_file

TINY = Architecture("iresnet10", embedding_dim=8, image_size=16, options={"width": 0.25})
save_safetensors = pytest.importorskip("safetensors.torch").save_file

pytestmark = pytest.mark.usefixtures("world")


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return dict(TINY.create().state_dict())


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(found[key], expected[key]) for key in expected
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_every_networks_weights_are_taken_and_its_head_beside_them(name, prefix, tmp_path):
    network = small(name).create()
    path, head = tmp_path / "model.pt", torch.randn(5, DIM)
    torch.save({prefix + key: t for key, t in network.state_dict().items()}, path)
    assert same(read_weight_file(path).tensors, network.state_dict())
    found = open_weights(path)
    assert found.architecture == as_recognized(name)
    assert same(found.network().state_dict(), network.state_dict())
    torch.save({"backbone": network.state_dict(), "head": {"weight": head}}, path)
    imported = read_arcface_torch([path], head=str(path))
    assert same(imported.backbone, network.state_dict())
    assert torch.equal(imported.centers, head), "of all its matrices the one that is no backbone's"


@pytest.mark.parametrize(
    "nest",
    [
        lambda state: {"epoch": 3, "model": state},
        lambda state: {"net": state},
        lambda state: {"model_state_dict": state, "optimizer_state_dict": {}, "loss": 1.0},
        lambda state: {"state_dict": {f"module._orig_mod.{k}": v for k, v in state.items()}},
        lambda state: {"trainer": {"networks": {"backbone": state}}},
    ],
)
def test_weights_are_found_under_any_keys(state, nest, tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(nest(state), path)
    assert same(read_weight_file(path).tensors, state)
    assert same(read_arcface_torch([path]).backbone, state)


def test_what_has_tensors_beside_them_is_named(state, tmp_path):
    path = tmp_path / "weights.pt"
    optimizer = {"state": {n: {"exp_avg": torch.zeros(2)} for n in range(9)}}
    torch.save({"backbone": state, "head": torch.zeros(4, 8), "optimizer": optimizer}, path)
    assert read_weight_file(path).notes == ("not used: head, optimizer.state",)
    assert "not used: head, optimizer.state" in read_arcface_torch([path]).notes


def test_several_backbones_in_a_file_are_refused(state, tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({"model": state, "ema": {"module": state}}, path)
    complaint = r"holds several backbones, under model, ema\.module: expected one"
    with pytest.raises(WeightsError, match=complaint):
        read_weight_file(path)
    with pytest.raises(ArcFaceTorchError, match=complaint):
        read_arcface_torch([path])


def test_several_backbones_in_one_dict_are_refused(state, tmp_path):
    """As MoCo saves them, whose two are equal in names and shapes."""
    both = {f"{of}.{name}": t for of in ("encoder_q", "encoder_k") for name, t in state.items()}
    torch.save({"state_dict": both}, tmp_path / "x.pt")
    complaint = r"several backbones, under state_dict\.encoder_q, state_dict\.encoder_k: expected"
    with pytest.raises(WeightsError, match=complaint):
        read_weight_file(tmp_path / "x.pt")
    with pytest.raises(ArcFaceTorchError, match=complaint):
        read_arcface_torch([tmp_path / "x.pt"])


@pytest.mark.parametrize(
    ("wrap", "name"),
    [
        (lambda state: {"state_dict": state, "best": np.float64(0.9)}, r"numpy\.\S*scalar"),
        (lambda state: TINY.create(), r"models\.iresnet\.IResNet"),
    ],
    ids=["numpy scalar", "whole model"],
)
def test_an_object_beside_the_weights_is_named_with_the_remedy(state, wrap, name, tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(wrap(state), path)
    with pytest.raises(WeightsError, match=f"holds {name} beside tensors .* weights_only=False"):
        read_weight_file(path)
    with pytest.raises(ArcFaceTorchError, match=f"holds {name} beside") as refused:
        read_arcface_torch([path])
    assert "\x1b" not in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("zeros", [64, None], ids=["begin", "all"])
def test_a_file_of_zeros_is_named_without_torchs_advice_to_run_its_code(state, zeros, tmp_path):
    """As a power cut, or a download that was cut off, leaves it."""
    torch.save(state, path := tmp_path / "zeros.pt")
    content = path.read_bytes()
    count = zeros or len(content)
    path.write_bytes(bytes(count) + content[count:])
    with pytest.raises(WeightsError, match=r"cannot be read as weights: .*damaged$") as caught:
        read_weight_file(path)
    assert not any(option in str(caught.value) for option in ("weights_only", "mmap"))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_no_bytes_end_in_a_trace(state, suffix, tmp_path):
    """Flipped, cut and repeated; the first bytes, where the structure is, more than others."""
    whole = tmp_path / f"whole{suffix}"
    plain = {name: tensor.contiguous() for name, tensor in state.items()}
    save_safetensors(plain, whole) if suffix == ".safetensors" else torch.save(plain, whole)
    draw = random.Random(0)
    refused = mutations_refused(whole.read_bytes(), draw, tmp_path, suffix=suffix, count=60)
    assert len(refused) > 10
    assert all(suffix in line and "\n" not in line for line in refused), "each names its file"


def mutations_refused(
    content: bytes, draw: random.Random, folder: Path, *, suffix: str, count: int
) -> list[str]:
    """How each reader refuses so many damaged copies; the others it takes."""
    readers: list[Callable[[Path], Any]] = [
        read_weight_file,
        lambda path: read_arcface_torch([path]),
    ]
    refused = []
    for number in range(count):
        path = folder / f"{number}{suffix}"
        path.write_bytes(mutate(content, draw))
        for read in readers:
            try:
                read(path)
            except (WeightsError, ArcFaceTorchError) as error:
                refused.append(str(error))
        path.unlink()
    return refused


def mutate(content: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content)
    kind = draw.choice(("flip", "flip", "flip", "cut", "repeat", "empty"))
    if kind == "cut":
        return bytes(changed[: draw.randrange(len(changed))])
    if kind == "repeat":
        start = draw.randrange(len(changed))
        return bytes(changed[:start] + changed[start : start + 100] + changed[start:])
    if kind == "empty":
        return b""
    for _ in range(draw.choice((1, 3, 20))):
        end = draw.choice((16, 4000, len(changed)))
        at = draw.randrange(end)
        changed[draw.choice((at, len(changed) - 1 - at))] = draw.randrange(256)
    return bytes(changed)


@pytest.mark.slow
def test_no_content_of_a_ranks_checkpoint_ends_in_a_trace(state, tmp_path):
    network, centers = TINY.create(), torch.nn.Parameter(torch.randn(5, 8))
    groups = [{"params": network.parameters()}, {"params": [centers]}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9).state_dict()
    optimizer["state"] = {n: {"momentum_buffer": torch.zeros(2)} for n in range(3)}
    content = {
        "epoch": 3,
        "global_step": 600,
        "state_dict_backbone": state,
        "state_dict_softmax_fc": {"weight": centers.detach()},
        "state_optimizer": optimizer,
    }
    draw, refused = random.Random(0), 0
    for number in range(60):
        folder = tmp_path / str(number)
        folder.mkdir()
        torch.save(replace_one(content, draw), folder / "checkpoint_gpu_0.pt")
        try:
            read_arcface_torch([folder])
        except ArcFaceTorchError:
            refused += 1
    assert refused > 10


def replace_one(content: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """A copy in which one value, at any depth, is another or is missing."""
    changed = copy.deepcopy(content)
    inner: Any = changed
    while True:
        keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
        key = draw.choice(keys)
        if isinstance(inner[key], (dict, list)) and inner[key] and draw.random() < 0.7:
            inner = inner[key]
            continue
        if isinstance(inner, dict) and draw.random() < 0.2:
            del inner[key]
        else:
            others = (None, 3, "x", [], {}, {"a": 1}, [{}], torch.zeros(()), torch.zeros(2, 3, 4))
            inner[key] = draw.choice(others)
        return changed
