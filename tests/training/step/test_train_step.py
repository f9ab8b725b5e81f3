"""The step: parts equal the whole, nothing is read from the device, and a graph may replay it."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from heads import AdaFace, ArcFace, ElasticArcFace, GroupClasses, PartialFC
from models import create_model
from tests.graph_safety import GraphSafety
from tests.host_reads import no_host_reads
from tests.recorded_graph import RecordedGraphs
from training.config import ConfigError, OptimConfig
from training.reporting.meters import Meters
from training.step import graphed_step
from training.step.graphed_step import GraphedStep
from training.step.learning import rate_factors
from training.step.optim import create_optimizer, set_learning_rate
from training.step.precision import Precision
from training.step.train_step import StepResult, TrainStep

CPU = torch.device("cpu")
CLASSES, DIM, SIZE, BATCH = 30, 16, 16, 12


def precision(dtype: torch.dtype = torch.float32, *, scaled: bool = False) -> Precision:
    return Precision(dtype, torch.float32, loss_scaling=scaled, tf32=False, reason="tested")


def build(margin=None, *, parts=1, numbers=None, optim=None, dropout=0.0, **head) -> TrainStep:
    torch.manual_seed(0)
    size = {"embedding_dim": DIM, "width": 0.25, "image_size": SIZE, "dropout": dropout}
    backbone, optim = create_model("iresnet10", **size).train(), optim or OptimConfig()
    factors = rate_factors(backbone, optim)
    return TrainStep(
        backbone,
        PartialFC(CLASSES, DIM, margin or ArcFace(scale=16.0), cuda_graph=False, **head),
        create_optimizer(backbone.parameters(), optim, CPU, factors=factors),
        precision=numbers or precision(),
        clip=5.0,
        micro_batches=parts,
        world_size=1,
    )


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (BATCH, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, CLASSES, (BATCH,), generator=generator)
    return images.contiguous(memory_format=torch.channels_last), labels


def no_lap(phase: str) -> None:
    """These tests have no clock."""


def state(step: TrainStep) -> list[Tensor]:
    """Everything that a step may change."""
    optimizer = [value for kept in step.optimizer.state.values() for value in kept.values()]
    scaler = [step.scaler._scale, step.scaler._growth_tracker] if step.scaler.is_enabled() else []
    head = [*step.head.state_dict().values(), step.head.margin_factor]
    tensors = [*step.backbone.state_dict().values(), *head, *optimizer, *scaler]
    return [tensor for tensor in tensors if isinstance(tensor, Tensor)]


def freeze_batch_norm(step: TrainStep) -> None:
    """Statistics of one batch, so that parts of another are normalized as the whole is."""
    for module in step.backbone.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    with torch.no_grad():
        step.backbone(batch(99)[0].float() / 127.5 - 1)
    step.backbone.eval()


@pytest.mark.parametrize("parts", [2, 3, 6])
@pytest.mark.parametrize("head", [{}, {"sample_rate": 0.4}, {"subcenters": 2}], ids=str)
def test_parts_of_a_batch_make_the_step_of_the_whole(parts, head):
    whole, divided = build(**head), build(parts=parts, **head)
    for step in (whole, divided):
        freeze_batch_norm(step)
    for number in range(3):
        results = []
        for step in (whole, divided):
            lr = set_learning_rate(step.optimizer, 0.01)
            results.append(step(*batch(number), lr, no_lap))
        for one, other in zip(*results):
            assert float(one) == pytest.approx(float(other), rel=1e-5, abs=1e-5)
    for one, other in zip(state(whole), state(divided), strict=True):
        assert (one - other).abs().max() <= 1e-5 * max(1, one.abs().max())


def test_a_part_that_is_not_finite_undoes_the_whole_step():
    step = build(parts=3)
    lr = set_learning_rate(step.optimizer, 0.1)
    images, labels = batch(0)
    labels[5] = CLASSES  # in the second of three
    step.head.steps.zero_()
    kept = [tensor.clone() for tensor in state(step)]
    assert step(images, labels, lr, no_lap).skipped
    step.head.steps.zero_()
    step.head.nonfinite_steps.zero_()
    assert all(torch.equal(a, b) for a, b in zip(kept, state(step), strict=True))


def test_the_centers_may_learn_at_a_rate_and_a_backbone_without_statistics_trains():
    torch.manual_seed(0)
    backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * SIZE**2, DIM))
    head = PartialFC(CLASSES, DIM, ArcFace(scale=16.0), momentum=0.0, weight_decay=0.0)
    optimizer = create_optimizer(backbone.parameters(), OptimConfig(), CPU)
    moved = {}
    for ratio in (1.0, 3.0):
        step = TrainStep(
            backbone,
            head,
            optimizer,
            precision=precision(),
            clip=0.0,
            head_lr_ratio=ratio,
            world_size=1,
        )
        before, weights = head.centers.clone(), backbone[1].weight.detach().clone()
        step(*batch(0), set_learning_rate(optimizer, 1e-6), no_lap)
        moved[ratio] = (head.centers - before).norm()
        assert not torch.equal(weights, backbone[1].weight)
    assert moved[3.0] / moved[1.0] == pytest.approx(3, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize(
    "numbers", [precision(), precision(torch.bfloat16, scaled=True)], ids=["fp32", "scaled"]
)
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_twenty_steps_read_nothing_and_could_be_recorded(parts, numbers, name):
    step = build(
        AdaFace(scale=16.0),
        parts=parts,
        numbers=numbers,
        optim=OptimConfig(name=name),
        dropout=0.2,
        sample_rate=0.4,
    )
    meters = Meters(CPU)
    batches = [batch(number) for number in range(20)]
    with no_host_reads(), GraphSafety():
        for images, labels in batches:
            lr = set_learning_rate(step.optimizer, 0.01)
            meters.add(step(images, labels, lr, no_lap))
    assert meters.read()["skipped_steps"] == 0


class Rehearsed(RecordedGraphs):
    """Recording computes nothing on a GPU; here it does, so what it changed is put back."""

    def __init__(self, step: TrainStep) -> None:
        super().__init__()
        self._step = step

    @contextmanager
    def graph(self, *args, **kwargs):
        kept, drawn = [tensor.clone() for tensor in state(self._step)], torch.get_rng_state()
        with super().graph(*args, **kwargs):
            yield
        for tensor, value in zip(state(self._step), kept, strict=True):
            tensor.detach().copy_(value)
        torch.set_rng_state(drawn)


@dataclass
class Run:
    """One of two runs that must not differ."""

    step: TrainStep
    call: object

    def __call__(self, number: int) -> StepResult:
        head, lr = self.step.head, set_learning_rate(self.step.optimizer, 0.01 * (number % 7 + 1))
        head.margin_factor.fill_(min(1.0, number / 20))
        self.step.centers_alone.fill_(number < 16)  # it ends between replays
        if number == 26 and head.sample_rate < 1:
            head.sample_rate = 0.6
        if head.expectations is not None:
            head.expectation_margin = 0.3 if number >= 26 else None
        images, labels = batch(number)
        if number in (5, 17, 40):
            labels = labels + CLASSES  # not finite: before, during and after
        torch.manual_seed(number)  # dropout
        return StepResult(*(value.clone() for value in self.call(images, labels, lr, no_lap)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"margin": ElasticArcFace(plus=True), "sample_rate": 0.4, "dropout": 0.3},
        {"margin": AdaFace(), "group_sampling": GroupClasses(groups=10, scope="sample")},
        {"parts": 3, "sample_rate": 0.4},
        {"expectation_margin": 0.3},
        {"numbers": precision(torch.bfloat16, scaled=True)},
        {"optim": OptimConfig(name="adamw", decay_norm_and_bias=False)},
        {"optim": OptimConfig(rates={"layer1.*": 0.5, "fc.*": 2.0})},
    ],
    ids=[
        *("plain", "elastic, dropout", "groups", "parts", "expectations"),
        *("scaled", "adamw", "rates"),
    ],
)
def test_a_recorded_step_replays_to_the_same_bits(options, monkeypatch):
    plain, recorded = build(**options), build(**options)
    graphs = Rehearsed(recorded)
    monkeypatch.setattr(torch, "get_device_module", lambda device: graphs)
    monkeypatch.setattr(graphed_step, "can_record", lambda device: True)
    runs = Run(plain, plain), Run(recorded, GraphedStep(recorded, CPU))
    for number in range(45):
        results = [run(number) for run in runs]
        for one, other in zip(*results):
            assert torch.equal(one, other) or (one.isnan() and other.isnan()), number
    for one, other in zip(state(plain), state(recorded), strict=True):
        assert torch.equal(one, other)
    # After eleven steps, and again after eleven with another sample rate or penalty.
    assert graphs.recordings == (2 if {"sample_rate", "expectation_margin"} & {*options} else 1)


def test_where_nothing_can_be_recorded_steps_run_and_the_reason_is_logged(caplog):
    plain, wanted = build(), build()
    graphed = GraphedStep(wanted, CPU)
    assert "step.cuda_graph=full: steps run without a graph: there are none on a cpu" in caplog.text
    runs = Run(plain, plain), Run(wanted, graphed)
    for number in range(15):
        assert torch.equal(*(run(number).loss for run in runs)) or number == 5


def test_a_recording_that_fails_ends_the_run_with_the_remedy(monkeypatch):
    """What it leaves half done, scaler and DDP among it, cannot be gone on from."""
    wanted = build(numbers=precision(torch.bfloat16, scaled=True))
    graphs = Rehearsed(wanted)
    graphs.failure, graphs.last = "operation not permitted when stream is capturing", 9
    monkeypatch.setattr(torch, "get_device_module", lambda device: graphs)
    monkeypatch.setattr(graphed_step, "can_record", lambda device: True)
    run = Run(wanted, GraphedStep(wanted, CPU))
    for number in range(11):
        run(number)
    with pytest.raises(ConfigError, match=r"not permitted .*set step\.cuda_graph=head"):
        run(11)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_gpu_replays_what_it_would_compute(name):
    device = torch.device("cuda", 0)
    losses = []
    for whole in (False, True):
        step = build(optim=OptimConfig(name=name))
        step.backbone.to(device)
        step.head.to(device)
        optimizer = create_optimizer(step.backbone.parameters(), OptimConfig(name=name), device)
        step = TrainStep(
            step.backbone, step.head, optimizer, precision=precision(), clip=5.0, world_size=1
        )
        call = GraphedStep(step, device) if whole else step
        losses.append([])
        for number in range(20):
            images, labels = (tensor.to(device) for tensor in batch(number))
            lr = set_learning_rate(optimizer, 0.01)
            losses[-1].append(call(images, labels, lr, no_lap).loss.item())
        if whole:
            assert call.obstacle is None
            call.forget()
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
