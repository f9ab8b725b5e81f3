"""Meters read nothing between readings; every reading arrives in console, TensorBoard and JSON."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from heads import CosFace, PartialFC
from tests.host_reads import no_host_reads
from training.metrics import Meters, Position, Reporter, pace, peak_memory
from training.precision import choose_precision
from training.step import StepResult, TrainStep
from training.stopwatch import Laps, Stopwatch

CPU = torch.device("cpu")


def result(loss: float, *, skipped: bool = False, scale: float = 1.0) -> StepResult:
    return StepResult(
        loss=torch.tensor(loss),
        distillation=torch.tensor(5 * loss),
        gradient_norm=torch.tensor(math.inf if skipped else 2 * loss),
        embedding_norm=torch.tensor(3 * loss),
        skipped=torch.tensor(skipped),
        loss_scale=torch.tensor(scale),
    )


def test_meters_give_means_of_the_steps_that_counted():
    """With nothing read from the device until they are."""
    meters = Meters(CPU)
    steps = [
        result(1.0, scale=8.0),
        result(5.0, skipped=True, scale=4.0),  # only a gradient overflowed
        result(math.nan, skipped=True, scale=2.0),
        result(2.0, scale=2.0),
    ]
    with no_host_reads():
        for step in steps:
            meters.add(step)
    reading = meters.read()
    assert (reading["loss"], reading["gradient_norm"], reading["embedding_norm"]) == (1.5, 3.0, 4.5)
    assert (reading["skipped_steps"], reading["nonfinite_losses"]) == (2, 1)
    assert reading["loss_scale"] == 2.0, "the newest"


def test_a_reading_is_one_transfer():
    meters, reads = Meters(CPU), []
    meters.add(result(1.0))
    with no_host_reads() as watch, pytest.MonkeyPatch.context() as patch:
        tolist = watch.allow(torch.Tensor.tolist)
        patch.setattr(torch.Tensor, "tolist", lambda tensor: reads.append(1) or tolist(tensor))
        meters.read()
    assert len(reads) == 1


def test_every_reading_begins_anew():
    meters = Meters(CPU)
    meters.add(result(1.0))
    meters.read()
    meters.add(result(4.0))
    assert meters.read()["loss"] == 4.0


def test_where_all_steps_were_skipped_there_is_no_mean():
    meters = Meters(CPU)
    meters.add(result(4.0, skipped=True))
    reading = meters.read()
    assert math.isnan(reading["loss"])
    assert reading["skipped_steps"] == 1


def test_meters_add_up_in_double_precision():
    """In float32, ten million and one are ten million."""
    meters = Meters(CPU)
    for loss in (2.0**24, 1.0, 1.0, 2.0):
        meters.add(result(loss))
    assert meters.read()["loss"] == (2**24 + 4) / 4


def test_memory_on_a_cpu_is_the_peak_of_the_process():
    """As the kernel tells it elsewhere; torch alone takes more than 20 MB."""
    status = Path("/proc/self/status").read_text()
    peak = 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1))
    assert 20e6 < peak_memory(CPU) == pytest.approx(peak, rel=0.05)
    assert Meters(CPU).read()["memory_mb"] == pytest.approx(peak / 1e6, rel=0.05)


def test_memory_of_an_accelerator_is_what_its_module_counts(monkeypatch):
    class Module:
        @staticmethod
        def max_memory_allocated(device: torch.device) -> int:
            return {"meta": 7_000_000}[device.type]

    monkeypatch.setattr(torch, "get_device_module", lambda device: Module)
    assert peak_memory(torch.device("meta")) == 7_000_000


def test_a_step_tells_the_loss_scale_of_the_next_without_reading_it():
    """It is halved where a label outside the classes makes the loss NaN."""
    backbone = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(48, 8), torch.nn.BatchNorm1d(8)
    )
    head = PartialFC(num_classes=5, embedding_dim=8, margin=CosFace())
    lr = torch.tensor(0.1)
    step = TrainStep(
        backbone,
        head,
        torch.optim.SGD(backbone.parameters(), lr=lr, fused=True),
        precision=replace(choose_precision(CPU, "fp32"), loss_scaling=True),
        clip=5.0,
        world_size=1,
    )
    images, labels = torch.randint(256, (4, 3, 4, 4), dtype=torch.uint8), torch.arange(4)
    with no_host_reads() as watch:
        stopwatch = Stopwatch(CPU)
        results = [step(images, wrong, lr, stopwatch.lap) for wrong in (labels, labels + 5)]
        with watch.allowed():
            assert [result.loss_scale.item() for result in results] == [65536, 32768]


LAPS = Laps(
    seconds={"other": 0.5, "data": 0.5, "forward": 3.0, "head": 2.0, "backward": 4.0},
    host_seconds={"other": 0.1, "data": 2.5, "forward": 1.0, "head": 1.0, "backward": 1.0},
    host_bound={"other": 0.5, "data": 0.5, "head": 2.0},
)


def test_pace_is_a_step_its_shares_and_who_waits():
    reading = pace(LAPS, steps=5, images=64, steps_left=100)
    assert reading["images_per_s"] == pytest.approx(5 * 64 / 10)
    assert reading["seconds_left"] == pytest.approx(100 * 2)
    assert reading["seconds_forward"] == pytest.approx(0.6)
    shares = {name: value for name, value in reading.items() if name.startswith("share_")}
    assert set(shares) == {f"share_{phase}" for phase in LAPS.seconds}
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["share_head"] == pytest.approx(0.2)
    assert reading["data_wait_fraction"] == pytest.approx(0.25), "on the host's clock"
    assert reading["host_bound_fraction"] == pytest.approx(0.2), "inside the step alone"


def read(scale: float = 1.0) -> dict[str, float]:
    meters = Meters(CPU)
    meters.add(result(12.3456, scale=scale))
    return meters.read() | {"lr": 0.1} | pace(LAPS, steps=5, images=64, steps_left=9000)


def test_a_reading_arrives_everywhere_under_its_names(tmp_path):
    reporter, reading = Reporter(tmp_path, at=Position(0, 0.0, 9005)), read()
    reporter.training(Position(5, 0.25, 9005), reading)
    reporter.close()
    [line] = reporter.metrics_path.read_text().splitlines()
    assert json.loads(line) == {"step": 5, "epoch": 0.25, **reading}
    events = EventAccumulator(str(reporter.tensorboard_path)).Reload()
    assert set(events.Tags()["scalars"]) == {f"train/{name}" for name in reading}


@pytest.mark.parametrize("scale", [65536.0, 2.0**24, 1.0, 0.5])
def test_the_console_line_is_found_by_what_reads_arcface_torchs(scale, tmp_path, capsys):
    reporter = Reporter(tmp_path, at=Position(0, 0.0, 9005))
    reporter.training(Position(5, 2.25, 9005), read(scale))
    reporter.close()
    [line] = capsys.readouterr().out.splitlines()
    pattern = (
        r"Speed ([\d.]+) samples/sec +Loss ([\d.]+) +LearningRate ([\d.]+) +Epoch: (\d+)\S* +"
        r"Global Step: (\d+)\S* +Fp16 Grad Scale: +([\d.]+) +Required: ([\d.]+) hours"
    )
    found = [float(text) for text in re.match(pattern, line).groups()]
    assert found == pytest.approx([32.0, 12.3456, 0.1, 2, 5, scale, 5.0])
    assert "data 5% forward 30% head 20% backward 40%" in line


def test_a_resumed_run_forgets_what_was_told_after_its_checkpoint(tmp_path):
    at = Position(0, 0.0, 9005)
    first = Reporter(tmp_path, at=at)
    for step in (5, 10, 15):
        first.training(Position(step, step / 20, 9005), read())
    first.close()
    with first.metrics_path.open("a") as file:
        file.write('{"step": 7, "los')
    Reporter(tmp_path, at=Position(10, 0.5, 9005)).close()
    steps = [json.loads(line)["step"] for line in first.metrics_path.read_text().splitlines()]
    assert steps == [5, 10]
