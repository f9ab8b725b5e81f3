"""Devices never mix: the whole step on a CUDA device that need not be there (make check-cuda)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from heads import MARGINS, ArcFace, GroupClasses, Margin, PartialFC, StepContext, Target
from models import create_model, normalize
from models.batch_norm import fuse_batch_norm
from tests.fake_cuda import DEVICE, OtherDeviceError, fake_cuda, strict
from tests.graph_safety import GraphUnsafeError
from tests.models.small import SMALL
from training.config import OptimConfig
from training.reporting.meters import Meters
from training.step.optim import create_optimizer, set_learning_rate
from training.step.precision import choose_precision
from training.step.train_step import TrainStep

pytestmark = [
    pytest.mark.skipif(
        not torch.backends.cuda.is_built(),
        reason="this build of torch has no CUDA: make check-cuda brings one that has",
    ),
    # Seen with 2.6, and no more with 2.13.
    pytest.mark.skipif(
        torch.__version__ < "2.13",
        reason="this torch asks a GPU even for tensors that hold nothing: make check-cuda has 2.13",
    ),
]

CLASSES, DIM, BATCH, SIZE = 100, 16, 4, 32

SAMPLINGS = {
    "all": {},
    "random": {"sample_rate": 0.2},
    "groups": {"group_sampling": GroupClasses(groups=25, random_groups=1, scope="sample")},
}


def build_head(margin: Margin, compute_dtype: torch.dtype = torch.float16, **options) -> PartialFC:
    return PartialFC(
        *(CLASSES, DIM, margin),
        compute_dtype=compute_dtype,
        backend="torch",
        cuda_graph=False,
        device=DEVICE,
        **options,
    )


def face_batch() -> tuple[Tensor, Tensor]:
    """As the loader yields it: (B, 3, H, W) uint8 in channels_last, and (B,) int64."""
    pixels = torch.zeros(BATCH, SIZE, SIZE, 3, dtype=torch.uint8, device=DEVICE)
    return pixels.permute(0, 3, 1, 2), torch.zeros(BATCH, dtype=torch.int64, device=DEVICE)


def embedding_batch(rows: int = BATCH) -> tuple[Tensor, Tensor]:
    embeddings = torch.zeros(rows, DIM, device=DEVICE, requires_grad=True)
    return embeddings, torch.zeros(rows, dtype=torch.int64, device=DEVICE)


def train(head: PartialFC) -> None:
    """Forward, backward and update, strictly on the device."""
    rate, skip = torch.zeros((), device=DEVICE), torch.zeros((), dtype=torch.bool, device=DEVICE)
    embeddings, labels = embedding_batch()
    with strict():
        loss = head(embeddings, labels)
        loss.backward()
        head.step(rate, skip=skip)
    assert loss.shape == ()
    assert embeddings.grad.shape == embeddings.shape


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("margin", MARGINS)
def test_every_margin_and_sampling_stays_on_the_device(margin, sampling):
    with fake_cuda():
        train(build_head(MARGINS[margin](), **SAMPLINGS[sampling]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_other_precisions_with_filtering_and_sub_centers_stay_there(dtype, sampling):
    with fake_cuda():
        train(build_head(ArcFace(filter_above=0.3), dtype, subcenters=3, **SAMPLINGS[sampling]))


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("margin", ["arcface", "curricularface"])
def test_micro_batches_stay_on_the_device(margin, sampling):
    with fake_cuda():
        head = build_head(MARGINS[margin](), **SAMPLINGS[sampling])
        rate, (embeddings, labels) = torch.zeros((), device=DEVICE), embedding_batch(3 * BATCH)
        with strict():
            head.begin_step(labels.view(3, -1))
            for rows, ids in zip(embeddings.chunk(3), labels.chunk(3)):
                head(rows, ids).backward()
            head.step(rate)


def test_the_head_evaluates_on_the_device():
    with fake_cuda():
        head, batch = build_head(ArcFace()).eval(), embedding_batch()
        with strict():
            assert head(*batch).shape == ()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", [*SMALL, "iresnet10 fused"])
def test_pixels_become_embeddings_and_gradients_on_the_device(name, dtype):
    name, _, fused = name.partition(" ")
    options = SMALL[name] | ({"dropout": 0.1} if name.startswith("iresnet") else {})
    model = create_model(name, embedding_dim=DIM, image_size=SIZE, **options)
    if fused:
        fuse_batch_norm(model)
    with fake_cuda():
        model.to(DEVICE)
        pixels, _ = face_batch()
        with strict():
            with torch.autocast(DEVICE.type, dtype):
                images = normalize(pixels, dtype)
                embeddings = model(images)
            embeddings.sum().backward()
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert (embeddings.shape, embeddings.dtype) == ((BATCH, DIM), torch.float32)
        trained = [p for p in model.parameters() if p.requires_grad]
        assert all((p.grad.device, p.grad.dtype) == (DEVICE, torch.float32) for p in trained)


@pytest.mark.parametrize(
    ("precision", "optimizer", "micro_batches"),
    [("fp32", "sgd", 1), ("bf16", "adamw", 2), ("fp16", "sgd", 2), ("fp16", "adamw", 1)],
)
def test_the_whole_step_and_its_meters_stay_on_the_device(precision, optimizer, micro_batches):
    """From the loader's batch to the sums of the meters; float16 with its loss scaler."""
    model = create_model("iresnet10", embedding_dim=DIM, width=0.25, image_size=SIZE)
    config = OptimConfig(name=optimizer)
    with fake_cuda():
        chosen = choose_precision(DEVICE, precision)
        step = TrainStep(
            model.to(DEVICE),
            build_head(ArcFace(), chosen.head_dtype, sample_rate=0.2),
            create_optimizer(model.parameters(), config, DEVICE),
            precision=chosen,
            clip=config.clip,
            micro_batches=micro_batches,
            world_size=1,
        )
        assert step.scaler.is_enabled() == (precision == "fp16")
        batch, meters, phases = face_batch(), Meters(DEVICE), []
        with strict():
            for rate in (0.1, 0.2):
                lr = set_learning_rate(step.optimizer, rate)
                meters.add(step(*batch, lr, phases.append))


# What no step may do; given are values (4,) on the device.
HOST_READS: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x.sum()),
    "bool": lambda x: bool(x.sum() > 0),
    "tolist": lambda x: x.tolist(),
    "slice": lambda x: x[: x.sum().long()],
    "equal": lambda x: torch.equal(x, x),
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 0),
    "mask": lambda x: x[x > 0],
    "assignment by mask": lambda x: x.__setitem__(x > 0, x[:1]),
    "unique": lambda x: x.unique(),
    "repeat_interleave": lambda x: x.repeat_interleave(x.long()),
}
OTHER_DEVICES: dict[str, Callable[[Tensor], Any]] = {
    "cpu": lambda x: x.cpu(),
    "to": lambda x: x.to("cpu", non_blocking=True),
    "tensor from the host": lambda x: torch.tensor([1.0, 2.0], device=DEVICE),
    "copy from the host": lambda x: x.copy_(torch.ones(4)),
    "forgotten device": lambda x: torch.arange(4),
    "addition": lambda x: x + torch.ones(4),
    "0-d": lambda x: x + torch.ones(()),
    "index": lambda x: x[torch.tensor([0, 1])],
}


@pytest.mark.parametrize("offense", HOST_READS)
def test_a_read_on_the_host_or_a_shape_from_data_fails(offense):
    with fake_cuda(), pytest.raises(GraphUnsafeError), strict():
        HOST_READS[offense](torch.zeros(4, device=DEVICE))


@pytest.mark.parametrize("offense", OTHER_DEVICES)
def test_a_tensor_of_another_device_fails(offense):
    with fake_cuda():
        values = torch.zeros(4, device=DEVICE)
        with pytest.raises((OtherDeviceError, RuntimeError), match="cpu"), strict():
            OTHER_DEVICES[offense](values)


@dataclass(frozen=True, kw_only=True)
class Faulty(ArcFace):
    """ArcFace, after an offense."""

    offense: Callable[[Tensor], Any]

    def bend(self, cosine: Tensor, norms: Tensor, context: StepContext) -> Target:
        self.offense(cosine)
        return super()._bend(cosine, norms, context)


@pytest.mark.parametrize("offense", ["item", "nonzero", "addition", "0-d"])
def test_an_offense_deep_inside_the_step_fails_it(offense):
    with fake_cuda():
        head = build_head(Faulty(offense=(HOST_READS | OTHER_DEVICES)[offense]))
        with pytest.raises((AssertionError, RuntimeError), match=r"in a CUDA graph|cpu"):
            train(head)


class GradientElsewhere(torch.autograd.Function):
    """The identity, whose backward forgets the device."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return torch.zeros(grad.shape)


def test_a_gradient_of_another_device_fails():
    with fake_cuda():
        loss = GradientElsewhere.apply(torch.zeros(4, device=DEVICE, requires_grad=True)).sum()
        with pytest.raises(OtherDeviceError, match="has a gradient on cpu"):
            loss.backward()
