"""A whole run on one process: what it leaves behind, and who may go on with that."""

from __future__ import annotations

import json
import re
import shutil
import sys
from functools import partialmethod
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.records import record_file
from tests.host_reads import no_host_reads
from tests.training import tiny
from tests.training.runs import SCORES, build, state
from training.config import override
from training.loop import Trainer
from training.reporting.meters import Meters
from training.saving import checkpoint
from training.saving.files import CheckpointError
from training.step.precision import choose_precision


@pytest.fixture(scope="module")
def finished(data, world, tmp_path_factory) -> Trainer:
    """A run of three epochs with augmentation and dropout, logged at every second step."""
    config = override(
        tiny.config(data, tmp_path_factory.mktemp("runs") / "whole"),
        ["log.every=2", "model.dropout=0.3", "data.augment=[flip,geometry,light]"],
    )
    trainer = build(config, world)
    trainer.run()
    return trainer


def test_a_run_learns_and_writes_down_what_it_saw(finished):
    lines = [json.loads(line) for line in finished.reporter.journal.path.read_text().splitlines()]
    training = [line for line in lines if "loss" in line]
    assert [line["step"] for line in training] == [2, 4, 6, 8, 10, 12, 14, 15]
    assert training[-1]["loss"] < training[0]["loss"]
    assert all(line["images_per_s"] > 0 and line["skipped_steps"] == 0 for line in training)
    assert training[-1]["lr"] == pytest.approx(finished.schedule(14))
    verified = [line["step"] for line in lines if "verification" in line]
    assert verified == [0, 5, 10, 15], "before the first step and after every epoch"


def test_a_run_says_soon_how_long_it_will_take(finished):
    said = (finished.output / "run.log").read_text()
    assert re.search(r"time       about \d+ s for 2 steps at [\d,]+ images/s", said)


def test_tensorboard_has_curves_times_and_an_image_grid(finished):
    events = EventAccumulator(str(finished.reporter.tensorboard_path)).Reload()
    scalars = set(events.Tags()["scalars"])
    wanted = {"loss/loss", "steps/lr", "steps/gradient_norm", "speed/images_per_s"}
    times = {f"speed/seconds_{phase}" for phase in ("forward", "head", "backward", "update")}
    assert wanted | times | {"data/seconds_data", "memory/memory_mb"} <= scalars
    assert "verification_pairs/accuracy" in scalars
    image = events.Images("data/images")[0]
    assert (image.width, image.height) == (8 * tiny.SIZE, tiny.SIZE), "one row of eight"
    assert "config/text_summary" in events.Tags()["tensors"]


def test_the_last_checkpoints_are_kept_and_complete(finished):
    kept = [path.name for path in checkpoint.checkpoints(finished.output)]
    assert kept == ["step_000000010", "step_000000015"]
    saved = json.loads((finished.last_checkpoint / "config.json").read_text())
    assert saved["model"]["name"] == "iresnet10"


@pytest.mark.slow
def test_an_interrupted_run_goes_on_bit_for_bit(finished, data, world, tmp_path):
    """Interrupted while the second epoch is verified: weights, centers, momentum end the same."""
    config = override(finished.config, [f"run.output={tmp_path / 'run'}"])
    calls = []

    def interrupt(backbone):
        calls.append(backbone)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return {"pairs": SCORES}

    with pytest.raises(KeyboardInterrupt):
        build(config, world, interrupt).run()
    resumed = build(config, world)
    assert resumed.steps_done == 10
    resumed.run()
    for found, expected in zip(state(resumed), state(finished), strict=True):
        assert torch.equal(found, expected)
    steps = [
        json.loads(line)["step"]
        for line in resumed.reporter.journal.path.read_text().splitlines()
        if "loss" in line
    ]
    assert steps == sorted(set(steps)), "nothing comes twice"


def test_a_finished_run_started_again_does_nothing(finished, world):
    again = build(finished.config, world)
    before = [tensor.clone() for tensor in state(again)]
    again.run()
    assert all(torch.equal(a, b) for a, b in zip(before, state(again), strict=True))


BINDING = [
    ("optim.momentum=0.5", r"optim\.momentum was 0\.9, is 0\.5"),
    ("head.sample_rate=0.5", r"head\.sample_rate was 1\.0, is 0\.5"),
    ("head.loss_args={margin: 0.3, scale: 16.0}", r'head\.loss_args was \{"margin": 0\.2.*0\.3'),
    ("run.epochs=4", r"run\.epochs was 3, is 4"),
]


@pytest.mark.parametrize(("change", "difference"), BINDING)
def test_other_settings_are_refused_where_a_run_would_go_on(finished, world, change, difference):
    before = sorted(finished.output.rglob("step_*"))
    with pytest.raises(CheckpointError, match=f"other settings: {difference}.*run.resume=") as e:
        build(override(finished.config, [change]), world)
    assert e.value.args[0].count(" was ") == 2, "nothing else differs"
    assert sorted(finished.output.rglob("step_*")) == before


def test_a_new_run_may_begin_at_a_checkpoint_with_other_settings(finished, world, tmp_path, capsys):
    """Momentum and weight decay lie in the checkpoint too, which must not win."""
    changes = ["optim.momentum=0.5", "optim.weight_decay=0.01", "log.every=7", "run.epochs=4"]
    new = [f"run.output={tmp_path / 'new'}", f"run.resume={finished.output}"]
    resumed = build(override(finished.config, [*changes, *new]), world)
    for settings in (resumed.step.optimizer.param_groups[0], vars(resumed.step.head)):
        assert (settings["momentum"], settings["weight_decay"]) == (0.5, 0.01)
    assert resumed.steps_done == 15
    message = [line[21:] for line in capsys.readouterr().out.splitlines()]  # without their times
    assert [line for line in message if line.startswith("changed")] == [
        "changed    run.epochs was 3, is 4",
        "changed    optim.momentum was 0.9, is 0.5",
        "changed    optim.weight_decay was 0.0005, is 0.01",
        "changed    log.every was 2, is 7",
    ]
    resumed.close()


def test_what_leaves_the_weights_alone_may_change_and_is_listed(finished, world, capsys):
    again = build(override(finished.config, ["log.every=3", "run.keep=5"]), world)
    message = [line[21:] for line in capsys.readouterr().out.splitlines()]
    assert {"changed    log.every was 2, is 3", "changed    run.keep was 2, is 5"} <= set(message)
    assert message[-1] == "finished, nothing to do: step 15 was the last"
    again.close()


def test_a_line_that_was_half_written_does_not_stop_a_resume(finished, world):
    metrics = finished.reporter.journal.path
    whole = metrics.read_text()
    metrics.write_text(whole + '{"step": 15, "los')
    build(finished.config, world).reporter.close()
    assert metrics.read_text() == whole


def test_a_checkpoint_that_does_not_fit_says_what_differs(finished, world, tmp_path):
    """As when someone copies a checkpoint into another run's folder."""
    config = override(finished.config, ["model.width=0.5", f"run.output={tmp_path / 'run'}"])
    folder = tmp_path / "run" / "checkpoints"
    build(config, world).reporter.close()
    shutil.copytree(finished.last_checkpoint, folder / finished.last_checkpoint.name)
    complaint = r"is of another run: its model\.width is 0\.25, this one's is 0\.5"
    with pytest.raises(checkpoint.CheckpointError, match=complaint):
        build(config, world)


@pytest.mark.slow
def test_a_run_without_loss_scaling_goes_on_with_it(finished, world):
    """From a GPU with bfloat16 to one without."""
    trainer = build(finished.config, world)
    trainer.step.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    assert checkpoint.load(finished.last_checkpoint, train_step=trainer.step) == 15
    assert trainer.step.scaler.get_scale() == 8.0


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("model.width=0.5", r"holds another run: its model\.width is 0\.25, this one's is 0\.5"),
        ("head.num_classes=20", "its number of classes is 10"),
        ("data.global_batch=24", "its global batch is 12"),
        ("run.resume=never", r"run\.resume=never"),
    ],
)
def test_a_folder_with_another_run_is_refused_and_left_alone(finished, world, change, complaint):
    before = sorted(finished.output.rglob("*"))
    with pytest.raises(checkpoint.CheckpointError, match=complaint):
        build(override(finished.config, [change]), world)
    assert sorted(finished.output.rglob("*")) == before


def test_a_step_that_is_not_finite_changes_nothing(data, world, tmp_path):
    """A label outside the classes poisons the loss with NaN: weights, BatchNorm's statistics,
    centers and all momentum stay."""
    from training.reporting.stopwatch import Stopwatch
    from training.step.optim import set_learning_rate

    trainer = build(tiny.config(data, tmp_path / "run"), world)
    step, stopwatch = trainer.step, Stopwatch(world.device)
    lr = set_learning_rate(step.optimizer, 0.1)
    images, labels, *_ = next(trainer.loader.stream(0))
    meters = Meters(world.device)
    meters.add(step(images, labels, lr, stopwatch.lap))
    step.head.steps.zero_()  # which counts every step, skipped or not
    kept = [tensor.clone() for tensor in state(trainer)]
    meters.add(step(images, torch.full_like(labels, 10), lr, stopwatch.lap))
    assert step.head.nonfinite_steps == 1
    step.head.steps.zero_()
    step.head.nonfinite_steps.zero_()
    assert all(torch.equal(a, b) for a, b in zip(kept, state(trainer), strict=True))
    means = meters.read()
    assert means["skipped_steps"] == 1
    assert means["loss"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fifty_steps_between_two_lines_read_nothing_from_the_device(
    precision, data, world, tmp_path
):
    config = override(
        tiny.config(data, tmp_path / "run"),
        [
            "run.epochs=12",
            "run.save_every=12",
            "eval.every=12",
            "log.every=50",
            "model.dropout=0.2",
            "head.sample_rate=0.5",
            "step.micro_batches=2",
        ],
    )
    trainer = Trainer(
        config,
        world,
        precision=choose_precision(world.device, precision),
    )
    read, steps = [], []
    with no_host_reads() as watch:
        save = trainer.save

        def save_and_wait():
            save()
            trainer.wait_for_checkpoint()  # its thread reads the copy

        trainer.verify, trainer.save = watch.allow(trainer.verify), watch.allow(save_and_wait)
        trainer.reporter.images = watch.allow(trainer.reporter.images)
        trainer.require_room = watch.allow(trainer.require_room)  # before the first step
        with pytest.MonkeyPatch.context() as patch:

            def reading(meters):
                read.append(trainer.steps_done)
                with watch.allowed():
                    return whole(meters)

            whole = Meters.read
            patch.setattr(Meters, "read", reading)
            train_on = trainer.train_on
            patch.setattr(trainer, "train_on", lambda *a: steps.append(1) or train_on(*a))
            trainer.run()
    assert (read, len(steps)) == ([50, 60], 60)


@pytest.mark.slow
def test_a_run_compiles_records_and_gives_the_centers_a_rate_as_configured(
    data, world, tmp_path, monkeypatch, caplog
):
    """The compiler is torch's quickest; a CPU has no graphs, which is said and does no harm."""
    original = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(original, backend="aot_eager"))
    config = override(
        tiny.config(data, tmp_path / "run"),
        ["model.compile=true", "step.cuda_graph=full", "head.lr=0.5", "log.every=5"],
    )
    applied = []
    precision = choose_precision(world.device, "fp32")
    monkeypatch.setattr(type(precision), "apply", lambda self: applied.append(self))
    trainer = Trainer(config, world, precision=precision)
    trainer.run()
    assert applied == [precision]
    assert "compiled whole in" in trainer.assembly.about_backbone
    assert "steps run without a graph: there are none on a cpu" in caplog.text
    assert trainer.step._head_lr_ratio == 0.25  # of optim.lr=2.0
    assert trainer.steps_done == 15


def test_a_start_computes_a_files_fingerprint_once(data, world, tmp_path, monkeypatch):
    """Each takes 64 reads, which are 64 journeys on a network disk."""
    original, asked = record_file.fingerprint, []

    def counted(path: Path) -> str:
        asked.append(Path(path).name)
        return original(path)

    for module in list(sys.modules.values()):
        if getattr(module, "fingerprint", None) is original:
            monkeypatch.setattr(module, "fingerprint", counted)
    build(tiny.config(data, tmp_path / "run"), world).close()
    assert asked == ["train.rec"]
