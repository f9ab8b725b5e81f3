"""What a CUDA graph cannot hold raises under the mode, and what it can hold does not."""

from __future__ import annotations

import pytest
import torch

from tests.graph_safety import GraphSafety, GraphUnsafeError


@pytest.mark.parametrize(
    "unsafe",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x.nonzero(),
        lambda x: torch.where(x > 0),
        lambda x: x.unique(),
        lambda x: x.masked_select(x > 0),
        lambda x: x[x > 0],
        lambda x: x.index_put_((x > 0,), torch.zeros(())),
        lambda x: x.__setitem__(x > 0, torch.zeros(2)),
    ],
)
def test_it_catches_what_a_graph_cannot_hold(unsafe):
    with GraphSafety(), pytest.raises(GraphUnsafeError):
        unsafe(torch.tensor([1.0, -1.0, 2.0]))


def test_it_lets_static_shapes_through():
    with GraphSafety():
        x = torch.arange(6.0)
        x[torch.tensor([0, 2])] = x[torch.tensor([1, 3])]
        torch.where(x > 2, x, 0.0).index_select(0, torch.tensor([1]))
