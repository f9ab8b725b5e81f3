"""What PartialFC takes: every float dtype, any stride, and nothing that is out of its range."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from heads import ArcFace, PartialFC
from tests.heads.head_reference import scalar_head

CLASSES, DIM, BATCH = 40, 8, 6


def build() -> PartialFC:
    return PartialFC(CLASSES, DIM, ArcFace())


def batch(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    embeddings = 5 * torch.randn(BATCH, DIM, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, CLASSES, (BATCH,), generator=generator)
    return embeddings.to(dtype).requires_grad_(), labels


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_embeddings_of_any_float_dtype_get_gradients_of_their_own(dtype):
    embeddings, labels = batch(dtype=dtype)
    head = build()
    loss = head(embeddings, labels)
    loss.backward()
    assert loss.dtype == torch.float32
    assert embeddings.grad.dtype == dtype
    expected = scalar_head(embeddings, head.centers, labels, margin=ArcFace())
    error = (embeddings.grad - expected.embedding_grad).abs().max()
    assert error < max(1e-4, torch.finfo(dtype).eps) * expected.embedding_grad.abs().max()


def test_a_loss_scale_lifts_gradients_over_float16_underflow():
    embeddings, labels = batch(dtype=torch.float16)
    embeddings.data.mul_(4000)
    head = build()
    (head(embeddings, labels) * 2**16).backward()
    expected = (
        2**16 * scalar_head(embeddings, head.centers, labels, margin=ArcFace()).embedding_grad
    )
    assert (embeddings.grad - expected).abs().max() < 1e-3 * expected.abs().max()


def test_autocast_does_not_change_the_precision():
    embeddings, labels = batch()
    head = build()
    plain = head(embeddings, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(head(embeddings, labels), plain)


def test_strided_embeddings_and_labels_are_read_as_they_look():
    embeddings, labels = batch()
    wide = embeddings.detach().repeat_interleave(2, dim=1)[:, ::2]
    tall = labels.repeat_interleave(2)[::2]
    assert not wide.is_contiguous()
    head = build()
    assert torch.equal(head(wide, tall), head(embeddings, labels))


@pytest.mark.parametrize(
    ("embeddings", "labels", "message"),
    [
        (torch.zeros(4, 7), torch.zeros(4, dtype=torch.int64), "shape \\(B, 8\\)"),
        (torch.zeros(8), torch.zeros(1, dtype=torch.int64), "shape \\(B, 8\\)"),
        (torch.zeros(4, 8, dtype=torch.int32), torch.zeros(4, dtype=torch.int64), "floating"),
        (torch.zeros(4, 8), torch.zeros(4), "torch.int64"),
        (torch.zeros(4, 8), torch.zeros(4, dtype=torch.int32), "torch.int64"),
        (torch.zeros(4, 8), torch.zeros(4, 1, dtype=torch.int64), "shape \\(4,\\)"),
        (torch.zeros(4, 8), torch.zeros(3, dtype=torch.int64), "shape \\(4,\\)"),
        (torch.zeros(0, 8), torch.zeros(0, dtype=torch.int64), "at least one"),
        (torch.zeros(4, 8, device="meta"), torch.zeros(4, dtype=torch.int64), "device"),
    ],
)
def test_wrong_inputs_are_named(embeddings, labels, message):
    with pytest.raises(ValueError, match=message):
        build()(embeddings, labels)


@pytest.mark.parametrize(
    "options",
    [
        {"num_classes": 0},
        {"embedding_dim": 0},
        {"num_classes": 50.5},
        {"subcenters": 0},
        {"group_sampling": 5},
        {"backend": "cuda"},
        {"margin": "arcface"},
        {"sample_rate": -0.1},
        {"sample_rate": 1.5},
        {"sample_rate": math.nan},
        {"momentum": 1.0},
        {"weight_decay": -1e-4},
        {"seed": -1},
        {"seed": 2**63},
        {"dtype": torch.bfloat16},
        {"compute_dtype": torch.float64, "dtype": torch.float32},
        {"compute_dtype": torch.int8},
    ],
)
def test_arguments_outside_their_range_are_refused(options):
    arguments = {"num_classes": 10, "embedding_dim": 8, "margin": ArcFace(), **options}
    with pytest.raises(ValueError, match=next(iter(options))):
        PartialFC(**arguments)


@pytest.mark.parametrize(
    ("lr", "skip"),
    [
        (-0.1, None),
        (math.nan, None),
        (torch.tensor([0.1]), None),
        (0.1, True),
        (0.1, torch.tensor(1.0)),
        (0.1, torch.tensor([False])),
    ],
)
def test_a_refused_step_can_be_taken_again(lr, skip):
    head = build()
    embeddings, labels = batch()
    head(embeddings, labels)
    with pytest.raises(ValueError, match="expected"):
        head.step(lr, skip=skip)
    head.step(0.1)
