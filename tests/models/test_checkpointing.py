"""Blocks that run again in backward: the same numbers to the bit, and less that is kept."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models import fold_batch_norm
from models.checkpointing import blocks_of, checkpoint_blocks
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


def kept(run: Callable[[], object], model: nn.Module, *besides: Tensor, **again: Any) -> int:
    """Bytes, without those of the model."""
    own = [*model.parameters(), *model.buffers(), *besides]
    return sum(kept_for_backward(run, besides=own, **again))


@every_network
def test_inputs_are_kept_and_the_prediction_adds_the_largest_block(name: str) -> None:
    model, stages, batch = trained(name), small(name).family.stages, images(8)
    blocks, one_by_one = blocks_of(model, stages), [0]

    def count(block: nn.Module, inputs: tuple[Any, ...]) -> None:
        tensors = [x for x in inputs if x is not None]
        one_by_one.append(kept(lambda: type(block).forward(block, *inputs), block, *tensors))

    hooks = [block.register_forward_pre_hook(count) for block in blocks]
    model(batch)
    for hook in hooks:
        hook.remove()
    torch.manual_seed(0)
    plain = kept(lambda: model(batch), model)
    predicted = kept(lambda: model(batch), model, again=blocks)
    checkpoint_blocks(model, stages)
    found = kept(lambda: model(batch), model)
    assert found < plain / 3
    assert predicted == pytest.approx(found + max(one_by_one), rel=0.02)


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
