"""Every way to read a tensor on the host raises, and what a step may do does not."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from tests.graph_safety import GraphUnsafeError
from tests.host_reads import HostReadError, no_host_reads

READS = {
    "item": lambda x: x[0].item(),
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "numpy": lambda x: x.numpy(),
    "np.asarray": lambda x: np.asarray(x),
    "np.from_dlpack": lambda x: np.from_dlpack(x),
    "to('cpu')": lambda x: x.to("cpu"),
    "to(device='cpu')": lambda x: x.to(device="cpu", non_blocking=True),
    "float()": lambda x: float(x[0]),
    "int()": lambda x: int(x[0]),
    "complex()": lambda x: complex(x[0]),
    "bool()": lambda x: bool(x[0]),
    "if": lambda x: 1 if x[0] > 0 else 2,
    "as an index": lambda x: [1, 2, 3][x.long()[0]],
    "as a slice": lambda x: x[: x.long()[0]],
    "in": lambda x: 1.0 in x,
    "print": lambda x: str(x),
    "repr": lambda x: repr(x),
    "format": lambda x: f"{x[0]:.2f}",
    "pickle": lambda x: pickle.dumps(x),
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 1),
    "unique": lambda x: x.unique(),
    "boolean mask": lambda x: x[x > 1],
    "assignment under a mask": lambda x: x.index_put_((x > 1,), torch.zeros(())),
    "masked_select": lambda x: x.masked_select(x > 1),
    "equal": lambda x: torch.equal(x, x + 1),
    "allclose": lambda x: torch.allclose(x, x + 1),
    "is_nonzero": lambda x: torch.is_nonzero(x[0]),
    "repeat_interleave": lambda x: x.repeat_interleave(x.long()),
}


@pytest.mark.parametrize("read", READS)
def test_a_read_is_caught_and_may_be_allowed(read):
    x = torch.tensor([1.0, 2.0, 3.0])
    READS[read](x)
    with no_host_reads() as watch:
        with pytest.raises((HostReadError, GraphUnsafeError)):
            READS[read](x)
        with watch.allowed():
            READS[read](x)
        watch.allow(READS[read])(x)
        with pytest.raises((HostReadError, GraphUnsafeError)):
            READS[read](x)
    READS[read](x)


class ReadsInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        gradient.tolist()
        return gradient


def test_a_read_in_backward_is_caught():
    loss = ReadsInBackward.apply(torch.ones(2, requires_grad=True)).sum()
    with no_host_reads(), pytest.raises(HostReadError, match="tolist"):
        loss.backward()


def test_a_parameter_is_a_tensor_too():
    with no_host_reads(), pytest.raises(HostReadError):
        float(torch.nn.Parameter(torch.ones(())))


def test_what_a_step_does_is_let_through():
    """Training a small network with fused SGD, a tensor rate, clipping and a masked update."""
    network = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
    rate = torch.tensor(0.1)
    optimizer = torch.optim.SGD(network.parameters(), lr=rate, momentum=0.9, fused=True)
    images, before = torch.randn(8, 4), network[0].weight.detach().clone()
    with no_host_reads():
        for step in range(2):
            rate.fill_(0.1 / (step + 1))
            loss = network(images).square().mean()
            optimizer.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimizer.found_inf = (~torch.isfinite(norm)).to(images.device, torch.float32)
            optimizer.step()
    assert not torch.equal(before, network[0].weight)
