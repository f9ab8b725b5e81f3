"""Counted traffic: what operations read and write, each once, some inputs twice."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from models import Architecture
from models.traffic import Traffic, bytes_an_image


def test_reads_writes_second_reads_and_broadcasts_are_counted() -> None:
    x, weight = torch.ones(2, 3, 4, 4), torch.ones(5, 3, 1, 1)
    mean, scale = torch.zeros(3), torch.ones(3)
    with Traffic() as traffic:
        y = F.conv2d(x, weight)
        F.batch_norm(x, mean, scale, scale, scale, training=True)
        y.permute(0, 2, 3, 1).add_(torch.ones(()).expand(5))
        torch.empty(1000)
    normed = 3 * 96 + 4 * 3 + 2 * 3  # x twice, the output; parameters, statistics and the batch's
    assert traffic.bytes == {
        "convolution": 4 * (96 + 15 + 160),
        "native_batch_norm": 4 * normed,
        "add_": 4 * (160 + 1 + 160),
        "ones": 4,
    }


def test_fused_batch_norm_reads_and_writes_less() -> None:
    """In 16 bits: neither PReLUs nor additions on their own, forward or backward."""
    architecture = Architecture(
        "iresnet10", embedding_dim=8, image_size=16, options={"width": 0.25}
    )
    plain, fused = (bytes_an_image(architecture, fused=f) for f in (False, True))
    for kind in ("convolution", "convolution_backward"):
        assert plain[kind] == fused[kind]
    assert not {"_prelu_kernel", "_prelu_kernel_backward", "add", "add_"} & {
        kind for kind, count in fused.items() if count
    }
    slopes = 2 * sum(c * s * s for c, s in ((16, 16), (16, 16), (32, 8), (64, 4), (128, 2)))
    assert plain["_prelu_kernel"] == 2 * slopes  # read and written
    assert plain["_prelu_kernel_backward"] == 4 * slopes  # that of the weights in full, too
    assert fused.total() < 0.8 * plain.total()
