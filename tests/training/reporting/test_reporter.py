"""Meters read nothing between readings; every reading arrives in console, TensorBoard and JSON."""

from __future__ import annotations

import io
import json
import logging
import math
import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from heads import CosFace, PartialFC
from tests.host_reads import no_host_reads
from training.config import load_config
from training.health.expected import known
from training.health.facts import Facts
from training.health.watch import Watch
from training.reporting.console import protect_console
from training.reporting.journal import Position
from training.reporting.meters import Meters, pace, peak_memory
from training.reporting.reporter import Reporter
from training.reporting.run_log import keep_early_warnings
from training.reporting.stopwatch import Laps, Stopwatch
from training.reporting.tags import Tags
from training.step.precision import choose_precision
from training.step.train_step import StepResult, TrainStep

ROOT = Path(__file__).parents[3]
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


def test_every_reading_begins_at_zero():
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
    """As the kernel tells it, less pages of files; torch alone takes more than 20 MB."""
    status = dict(re.findall(r"(VmHWM|RssFile):\s+(\d+) kB", Path("/proc/self/status").read_text()))
    peak = 1024 * (int(status["VmHWM"]) - int(status.get("RssFile", 0)))
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
    [line] = reporter.journal.path.read_text().splitlines()
    assert json.loads(line) == {"step": 5, "epoch": 0.25, **reading}
    events = EventAccumulator(str(reporter.tensorboard_path)).Reload()
    assert set(events.Tags()["scalars"]) == set(Tags().named(reading))


@pytest.mark.parametrize("scale", [65536.0, 2.0**24, 1.0, 0.5, None])
def test_the_console_line_is_found_by_what_reads_arcface_torchs(scale, tmp_path, capsys):
    """Which has the scale of losses where they are scaled, and only there."""
    reporter = Reporter(tmp_path, at=Position(0, 0.0, 9005), scales_losses=scale is not None)
    reporter.training(Position(5, 2.25, 9005), read(scale or 1.0))
    reporter.close()
    [line] = capsys.readouterr().out.splitlines()
    message = r"Fp16 Grad Scale: +([\d.]+) +" if scale else ""
    pattern = (
        r"Speed ([\d.]+) samples/sec +Loss ([\d.]+) +LearningRate ([\d.]+) +Epoch: (\d+)\S* +"
        rf"Global Step: (\d+)\S* +{message}Required: ([\d.]+) hours"
    )
    found = [float(text) for text in re.search(pattern, line).groups()]
    scales = [scale] if scale else []
    assert found == pytest.approx([32.0, 12.3456, 0.1, 2, 5, *scales, 5.0])
    assert "data 5% forward 30% head 20% backward 40%" in line


def test_a_resumed_run_drops_what_was_reported_after_its_checkpoint(tmp_path):
    at = Position(0, 0.0, 9005)
    first = Reporter(tmp_path, at=at)
    for step in (5, 10, 15):
        first.training(Position(step, step / 20, 9005), read())
    first.close()
    with first.journal.path.open("a") as file:
        file.write('{"step": 7, "los')
    Reporter(tmp_path, at=Position(10, 0.5, 9005)).close()
    steps = [json.loads(line)["step"] for line in first.journal.path.read_text().splitlines()]
    assert steps == [5, 10]


def points(reporter: Reporter, name: str) -> list[int]:
    """The steps of a curve as TensorBoard shows it."""
    events = EventAccumulator(str(reporter.tensorboard_path)).Reload()
    return [point.step for point in events.Scalars(name)]


def test_going_back_forgets_the_steps_that_come_again(tmp_path):
    reporter = Reporter(tmp_path, at=Position(0, 0.0, 9005))
    for step in (5, 10, 15):
        reporter.training(Position(step, step / 20, 9005), read())
    reporter.go_back(Position(10, 0.5, 9005))
    reporter.training(Position(12, 0.6, 9005), read())
    reporter.close()
    steps = [json.loads(line)["step"] for line in reporter.journal.path.read_text().splitlines()]
    assert steps == [5, 10, 12] == points(reporter, "loss/loss")


def of_known_recipe() -> Facts:
    [first, *_] = known()
    config = load_config(ROOT / f"configs/{first.recipe}.py")
    return Facts.of(config, classes=first.classes, steps_per_epoch=first.steps_per_epoch)


def test_losses_to_expect_stand_beside_the_run_s_own_also_after_it_has_gone_back(tmp_path):
    facts = of_known_recipe()
    expected = sorted(Watch(facts, list).expected_losses())
    reporter = Reporter(tmp_path, at=Position(0, 0.0, 9005), facts=facts)
    assert points(reporter, "loss/expected_low") == expected
    reporter.go_back(Position(expected[1], 0.5, 9005))
    reporter.close()
    assert points(reporter, "loss/expected_high") == expected
    layout = EventAccumulator(str(reporter.tensorboard_path)).Reload().Tags()["tensors"]
    assert "custom_scalars__config__" in layout


def test_what_is_wrong_is_said_while_the_run_goes_on_and_at_its_end(tmp_path):
    reporter = Reporter(tmp_path, at=Position(0, 0.0, 9005), facts=of_known_recipe())
    for step in range(1, 10):
        reporter.training(Position(step, step / 20, 9005), read() | {"loss": 0.0})
    reporter.close()
    reporter.sum_up(None)
    log = (tmp_path / "run.log").read_text()
    assert log.count("unhealthy  one class: the loss is 0 from the start") == 2


SCORES = {"lfw": {"accuracy": 0.9, "accuracy_std": 0.1, "auc": 0.95, "tar_at_far": 0.5}}


@pytest.mark.parametrize(
    ("given", "message"),
    [({"tar_at_far": 0.5}, "AUC 0.9500   TAR@FAR=1e-3 0.5000"), ({}, "AUC 0.9500")],
)
def test_a_set_s_line_has_the_figures_that_the_set_can_show(tmp_path, given, message):
    scores = {"accuracy": 0.9, "accuracy_std": 0.1, "auc": 0.95} | given
    reporter = Reporter(tmp_path, at=Position(0, 0.0, 9005))
    reporter.verification(Position(5, 0.25, 9005), {"lfw": scores})
    reporter.close()
    last = (tmp_path / "run.log").read_text().splitlines()[-1]
    assert last.endswith(f"[lfw][5] Accuracy 0.9000 ± 0.1000   {message}")


def test_a_folder_that_is_removed_ends_nobody_who_reports(tmp_path, caplog):
    """Its parent too, as with a lost disk: said once a place, and written when it is back."""
    folder = tmp_path / "disk" / "run"
    folder.mkdir(parents=True)
    reporter = Reporter(folder, at=Position(0, 0.0, 9005))
    reporter.training(Position(5, 0.25, 9005), read())
    (tmp_path / "disk").rename(tmp_path / "away")
    for step in (10, 15):
        reporter.training(Position(step, step / 20, 9005), read())
        reporter.verification(Position(step, step / 20, 9005), SCORES)
        reporter.images(Position(step, step / 20, 9005), torch.zeros(8, 3, 4, 4, dtype=torch.uint8))
        reporter.say("a line")
    assert reporter.verified(15) == {}
    reporter.go_back(Position(15, 0.75, 9005))
    assert len(caplog.records) == 3, "metrics, its reading and events; run.log tells stderr"
    (tmp_path / "away").rename(tmp_path / "disk")
    reporter.training(Position(20, 1.0, 9005), read())
    reporter.close()
    lines = [json.loads(line) for line in reporter.journal.path.read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [5, 10, 15, 20]
    assert points(reporter, "loss/loss") == [5, 10, 15, 20]
    assert reporter.verified(15) == SCORES
    assert (folder / "run.log").read_text().count("a line") == 2


def test_metrics_that_cannot_be_read_for_a_moment_are_not_forgotten(tmp_path, monkeypatch):
    first = Reporter(tmp_path, at=Position(0, 0.0, 9005))
    first.training(Position(5, 0.25, 9005), read())
    first.close()

    def fail(path: Path, **_: object) -> str:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", fail)
        Reporter(tmp_path, at=Position(5, 0.25, 9005)).close()
    [line] = first.journal.path.read_text().splitlines()
    assert json.loads(line)["step"] == 5


def test_run_log_has_every_line_and_warning_with_its_time_over_all_resumes(tmp_path, capsys):
    for number in range(2):
        reporter = Reporter(tmp_path, at=Position(0, 0.0, 9005))
        reporter.say(f"start {number}")
        logging.warning("the disk is %s", "slow")
        reporter.training(Position(5, 0.25, 9005), read())
        reporter.close()
        reporter.say("afterwards")
        logging.warning("of another run")
    lines = (tmp_path / "run.log").read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  \S", line) for line in lines)
    texts = [line[21:] for line in lines]
    shown = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "WARNING" not in line] == shown, "whose times are the same"
    assert texts.count("WARNING  the disk is slow") == 2
    assert "of another run" not in str(texts)
    assert {"start 0", "start 1"} < set(texts)


def test_warnings_from_before_the_run_has_its_folder_are_in_run_log(tmp_path):
    """As of a checkpoint that is damaged, which is found before the run can report."""
    keep_early_warnings()
    logging.warning("step_000000005 is damaged")
    reporter = Reporter(tmp_path, at=Position(0, 0.0, 9005))
    logging.warning("later")
    reporter.close()
    texts = [line[21:] for line in (tmp_path / "run.log").read_text().splitlines()]
    assert texts == ["WARNING  step_000000005 is damaged", "WARNING  later"]
    before = logging.getLogger().handlers[:]
    Reporter(tmp_path, at=Position(0, 0.0, 9005)).close()
    assert logging.getLogger().handlers == before, "nobody stays behind"


def test_what_a_console_cannot_show_is_in_run_log(tmp_path, monkeypatch, caplog):
    reading, writing = os.pipe()
    os.close(reading)
    monkeypatch.setattr(sys, "stdout", os.fdopen(writing, "w"))
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    protect_console()
    reporter = Reporter(tmp_path, at=Position(0, 0.0, 9005))
    reporter.say("nobody sees this")
    reporter.training(Position(5, 0.25, 9005), read())
    reporter.sum_up(tmp_path / "checkpoint")
    reporter.close()
    log = (tmp_path / "run.log").read_text()
    for text in ("nobody sees this", "Speed 32.00 samples/sec", "checkpoint   ", "Broken pipe"):
        assert text in log
    assert reporter.curves_path.exists()


def test_the_sum_says_how_verification_went_and_needs_no_curves(tmp_path, capsys):
    reporter = Reporter(tmp_path, at=Position(0, 0.0, 9005))
    reporter.sum_up(None)
    message = capsys.readouterr().out
    assert "no curves: " in message
    assert "curves.png" not in message, "there is none"
    better = {"lfw": SCORES["lfw"] | {"accuracy": 0.99}}
    reporter.verification(Position(0, 0.0, 9005), SCORES)
    reporter.verification(Position(5, 0.25, 9005), better)
    reporter.sum_up(None)
    reporter.close()
    assert "verification lfw: accuracy 0.9000 → 0.9900" in capsys.readouterr().out
    assert reporter.curves_path.read_bytes()[:4] == b"\x89PNG"


def test_a_picture_that_cannot_be_drawn_is_a_warning(tmp_path, caplog, capsys):
    reporter = Reporter(tmp_path, at=Position(0, 0.0, 9005))
    reporter.training(Position(5, 0.25, 9005), read())
    reporter.curves_path.mkdir()
    reporter.sum_up(None)
    reporter.close()
    assert "curves.png: [Errno 21] Is a directory" in caplog.text
    assert "curves       " not in capsys.readouterr().out
