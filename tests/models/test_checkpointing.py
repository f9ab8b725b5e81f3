"""Blocks that run again in backward: the same numbers to the bit, and less that is kept."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from models import fold_batch_norm
from models.checkpointing import checkpoint_blocks
from models.cost import kept_for_backward
from tests.host_reads import no_host_reads
from tests.models.small import SMALL, images, small, trained

every_network = pytest.mark.parametrize("name", SMALL)


def checkpointed(name: str) -> nn.Module:
    model = trained(name)
    checkpoint_blocks(model, small(name).family.stages)
    return model


def step(model: nn.Module) -> dict[str, Tensor]:
    """What a forward and backward leave behind: embeddings, gradients, statistics."""
    torch.manual_seed(3)  # of masks and of images that skip layers
    with torch.autocast("cpu", torch.bfloat16), no_host_reads():
        embeddings = model(images(8))
        (embeddings * images(8)[:, 0, 0, :24]).sum().backward()
    gradients = {f"gradient of {n}": p.grad for n, p in model.named_parameters()}
    found = {"embeddings": embeddings, **gradients, **model.state_dict()}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


@every_network
def test_embeddings_gradients_and_statistics_are_the_same_to_the_bit(name: str) -> None:
    found, expected = step(checkpointed(name)), step(trained(name))
    assert list(found) == list(expected)
    assert [key for key in expected if not torch.equal(found[key], expected[key])] == []


@every_network
def test_less_is_kept(name: str) -> None:
    def kept(model: nn.Module) -> int:
        own = [*model.parameters(), *model.buffers()]
        return sum(kept_for_backward(lambda: model(images(8)), besides=own))

    assert kept(checkpointed(name)) < kept(trained(name)) / 3


def test_a_copy_runs_its_own_weights_and_evaluation_runs_nothing_twice() -> None:
    model = checkpointed("iresnet10")
    copied = copy.deepcopy(model)
    nn.init.zeros_(copied.layer1[0].conv2.weight)
    assert not torch.equal(copied(images()), model(images()))
    folded, plain = fold_batch_norm(model), fold_batch_norm(trained("iresnet10"))
    assert len(list(folded.modules())) == len(list(plain.modules()))
    calls: list[nn.Module] = []
    model.layer1[0].conv1.register_forward_hook(lambda module, _inputs, _out: calls.append(module))
    model.eval()(images()).sum().backward()
    assert len(calls) == 1
