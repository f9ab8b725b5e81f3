"""A whole run on one process: what it leaves behind, how it resumes, what it refuses."""

from __future__ import annotations

import json
import re
import shutil
import sys
from functools import partialmethod
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.records import record_file
from tests.host_reads import no_host_reads
from tests.training import tiny
from training.config import Config, ConfigError, override
from training.distributed import World
from training.faults.agreement import Reason
from training.faults.stops import Stopped
from training.loop import Trainer
from training.reporting.meters import Meters
from training.saving import checkpoint, files, room
from training.saving.files import CheckpointError
from training.step.backbone import unwrapped
from training.step.precision import choose_precision

SCORES = {"accuracy": 0.5, "accuracy_std": 0.1, "auc": 0.6, "tar_at_far": 0.0, "far": 0.0}


def build(config: Config, world: World, score=lambda network: {"pairs": SCORES}) -> Trainer:
    precision = choose_precision(world.device, "fp32")
    return Trainer(config, world, precision=precision, sets=[tiny.scored(config, score)])


def state(trainer: Trainer) -> list[torch.Tensor]:
    step = trainer.step
    momentum = [s["momentum_buffer"] for s in step.optimizer.state.values()]
    return [*step.backbone.state_dict().values(), *step.head.state_dict().values(), *momentum]


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
    assert steps == sorted(set(steps)), "nothing is told twice"


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
    told = [line[21:] for line in capsys.readouterr().out.splitlines()]  # without their times
    assert [line for line in told if line.startswith("changed")] == [
        "changed    run.epochs was 3, is 4",
        "changed    optim.momentum was 0.9, is 0.5",
        "changed    optim.weight_decay was 0.0005, is 0.01",
        "changed    log.every was 2, is 7",
    ]
    resumed.close()


def test_what_leaves_the_weights_alone_may_change_and_is_listed(finished, world, capsys):
    again = build(override(finished.config, ["log.every=3", "run.keep=5"]), world)
    told = [line[21:] for line in capsys.readouterr().out.splitlines()]
    assert {"changed    log.every was 2, is 3", "changed    run.keep was 2, is 5"} <= set(told)
    assert told[-1] == "finished, nothing to do: step 15 was the last"
    again.close()


def test_checkpoints_that_cannot_fit_are_refused_before_the_first_step(
    data, world, tmp_path, monkeypatch
):
    config = tiny.config(data, tmp_path / "run")
    trainer = build(config, world)
    full = SimpleNamespace(f_bavail=5, f_frsize=10**6, f_blocks=9)
    with monkeypatch.context() as patch:
        patch.setattr(room.os, "statvfs", lambda folder: full)
        with pytest.raises(CheckpointError, match=r"3 checkpoints of 3 MB .*room for 1 in all"):
            trainer.run()
    assert trainer.steps_done == 0
    assert not checkpoint.checkpoints(tmp_path / "run")
    build(config, world).close()


@pytest.mark.slow
def test_a_try_that_saved_nothing_does_not_refuse_the_mended_one(data, world, tmp_path):
    """As where the first step ran out of memory; what it has told is forgotten."""
    output = tmp_path / "run"
    tried = build(override(tiny.config(data, output), ["model.width=0.5"]), world)
    tried.verify()
    tried.close()
    files.folder_of(output, 5).mkdir(parents=True)  # an unfinished save
    config = override(tiny.config(data, output), ["run.resume=never", "run.epochs=1"])
    mended = build(config, world)
    mended.run()
    lines = [json.loads(line) for line in mended.reporter.journal.path.read_text().splitlines()]
    assert [line["step"] for line in lines if "verification" in line] == [0, 5]
    events = EventAccumulator(str(mended.reporter.tensorboard_path)).Reload()
    steps = [event.step for event in events.Scalars("verification_pairs/accuracy")]
    assert steps == [0, 5]
    with pytest.raises(CheckpointError, match=r"holds another run: its model\.width is 0\.25"):
        build(tried.config, world)


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


def test_a_folder_with_something_else_is_refused(data, world, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(checkpoint.CheckpointError, match=r"not empty \(thesis\.tex\)"):
        build(tiny.config(data, tmp_path), world)


def test_labels_beyond_the_classes_are_refused_before_anything_is_allocated(data, world, tmp_path):
    config = override(tiny.config(data, tmp_path / "run"), ["head.num_classes=7"])
    with pytest.raises(
        ConfigError, match=r"head\.num_classes=7: .* labels up to 9, .* at offset \d+"
    ):
        build(config, world)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("model.sync_bn=true", r"model\.sync_bn=True: expected a GPU"),
        ("data.global_batch=100", "global batch of 100 does not fit 70 records"),
        ("data.augment=[flap]", "flap"),
        ("run.output=/dev/null", "is a file: choose a folder"),
        ("data.train=nowhere.rec", r"nowhere\.rec does not exist"),
    ],
)
def test_what_cannot_run_is_refused_with_its_name(data, world, tmp_path, change, complaint):
    with pytest.raises(ValueError, match=complaint):
        build(override(tiny.config(data, tmp_path / "run"), [change]), world)
    assert not (tmp_path / "run").exists(), "the mended run finds its folder free"


HEAD_SCHEDULES = [
    "head.loss=adaface",
    "head.loss_args={scale: 16.0}",
    "head.sample_rate=0.3",
    "head.sample_rate_from={1: 0.6, 2: 1.0}",
    "head.margin_warmup_epochs=1.4",
    "head.subcenters=2",
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "terms"),
    [
        ("adaface", "{}"),
        pytest.param(
            "uniface", "{sample_to_sample: {}, classifiability: {}}", marks=pytest.mark.slow
        ),
    ],
)
def test_the_heads_schedules_and_statistics_survive_an_interruption(
    loss, terms, data, world, tmp_path
):
    """Rate, share of the margin, AdaFace's statistics and what is learned are those of the step,
    resumed or not."""

    def run(output: Path, *overrides: str) -> tuple[Trainer, list[tuple[float, float]]]:
        settings = [*HEAD_SCHEDULES, f"head.loss={loss}", f"head.extra_terms={terms}", *overrides]
        config = override(tiny.config(data, output), settings)
        trainer, seen = build(config, world), []
        head, train_on = trainer.step.head, trainer.train_on

        def watch(*arguments):
            result = train_on(*arguments)
            seen.append((head.sample_rate, head.margin_factor.item()))
            return result

        trainer.train_on = watch
        trainer.run()
        return trainer, seen

    whole, seen = run(tmp_path / "whole")
    assert [rate for rate, _ in seen] == [0.3] * 5 + [0.6] * 5 + [1.0] * 5
    shares = [share for _, share in seen]
    assert shares == pytest.approx([min(1, (step + 1) / 8) for step in range(15)])
    if loss == "adaface":
        assert (whole.step.head.margin_state != torch.tensor([20.0, 100.0])).all()
    else:
        assert whole.step.head.learned_velocity.all()

    for path in (tmp_path / "whole" / "checkpoints").glob("step_*15"):
        shutil.rmtree(path)
    resumed, rest = run(tmp_path / "whole")
    assert rest == seen[10:]
    assert all(torch.equal(a, b) for a, b in zip(state(whole), state(resumed), strict=True))


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
@pytest.mark.parametrize("order", ["block", "balanced"])
def test_every_order_resumes_as_it_went_on(order, data, world, tmp_path):
    overrides = [
        f"data.order={order}",
        "data.block_records=4",
        "data.window_blocks=3",
        "data.images_per_identity=3",
    ]
    config = override(tiny.config(data, tmp_path / "run"), overrides)
    whole = build(config, world)
    whole.run()
    for path in (tmp_path / "run" / "checkpoints").glob("step_*15"):
        shutil.rmtree(path)
    resumed = build(config, world)
    assert resumed.steps_done == 10
    resumed.run()
    assert all(torch.equal(a, b) for a, b in zip(state(whole), state(resumed), strict=True))


def test_an_order_that_cannot_be_is_refused_with_its_name(data, world, tmp_path):
    config = override(
        tiny.config(data, tmp_path / "run"),
        ["data.order=balanced", "data.images_per_identity=5"],
    )
    with pytest.raises(ValueError, match=r"images=5 does not.*data\.images_per_identity"):
        build(config, world)


@pytest.mark.slow
def test_several_files_are_trained_on_as_one(data, world, tmp_path):
    """Labels follow one another, weights count, what is listed is left out, a resume goes on."""
    shutil.copytree(data, tmp_path / "more")
    (tmp_path / "drop.txt").write_text("more identity 3\n")
    config = override(
        tiny.config(data, tmp_path / "run"),
        [
            f"data.train=[{data},{tmp_path / 'more'}]",
            "data.weights=[1,0.5]",
            f"data.leave_out={tmp_path / 'drop.txt'}",
            "log.every=2",
        ],
    )
    whole = build(config, world)
    assert whole.step.head.num_classes == 20
    assert whole.loader.steps_per_epoch == (70 + 32) // 12
    whole.run()
    for path in (tmp_path / "run" / "checkpoints").glob("step_*24"):
        shutil.rmtree(path)
    resumed = build(config, world)
    assert resumed.steps_done == 16
    resumed.run()
    assert all(torch.equal(a, b) for a, b in zip(state(whole), state(resumed), strict=True))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.train=[]"], "expected a .rec file, its folder, or a set of another form"),
        (["data.train=[a.rec,a.rec]"], "expected each file once"),
        (["data.weights=[1,2]"], "expected one for each of data.train, which are 1"),
        (["data.weights=[1]", "data.order=balanced"], "expected none with data.order=balanced"),
        (["data.weights=[-1]"], "expected at least 0"),
    ],
)
def test_files_and_weights_that_do_not_fit_are_named(overrides, message, data, world, tmp_path):
    with pytest.raises(ConfigError, match=message):
        build(override(tiny.config(data, tmp_path / "run"), overrides), world)


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
def test_a_student_learns_from_a_teacher_and_goes_on_where_it_stopped(data, world, tmp_path):
    """The teacher is an earlier run's checkpoint; its targets pull the student's embeddings."""
    teacher = build(tiny.config(data, tmp_path / "teacher"), world)
    teacher.run()
    student = override(
        tiny.config(data, tmp_path / "student"),
        [
            f"distill.teacher={teacher.last_checkpoint}",
            "distill.weight=40.0",
            "distill.weight_end=10.0",
            "run.seed=7",
            "log.every=5",
            "step.micro_batches=2",
        ],
    )
    whole = build(student, world)
    whole.run()
    lines = [json.loads(line) for line in whole.reporter.journal.path.read_text().splitlines()]
    distances = [
        line["distillation"] / weight
        for line, weight in zip((x for x in lines if "loss" in x), (35.7, 25.0, 14.3))
    ]
    assert distances[2] < 0.8 * distances[0]
    for path in (tmp_path / "student" / "checkpoints").glob("step_*15"):
        shutil.rmtree(path)
    resumed = build(student, world)
    resumed.run()
    assert all(torch.equal(a, b) for a, b in zip(state(whole), state(resumed), strict=True))


@pytest.mark.slow
def test_a_run_compiles_records_and_gives_the_centers_a_rate_as_it_is_told(
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


@pytest.mark.slow
def test_a_run_starts_from_another_ones_weights_and_resumes_its_own(data, world, tmp_path, capsys):
    first = build(tiny.config(data, tmp_path / "first"), world)
    first.run()
    config = override(
        tiny.config(data, tmp_path / "second"),
        [f"run.init_from={tmp_path / 'first'}", "run.seed=5"],
    )
    second = build(config, world)
    expected = unwrapped(first.step.backbone).state_dict()
    for name, tensor in unwrapped(second.step.backbone).state_dict().items():
        counted = name.endswith("num_batches_tracked")  # a run counts its own
        assert counted or torch.equal(tensor, expected[name]), name
    assert torch.equal(second.step.head.centers, first.step.head.centers)
    assert "start      " in capsys.readouterr().out
    second.run()
    resumed = build(config, world)
    assert resumed.steps_done == 15
    assert not torch.equal(resumed.step.head.centers, first.step.head.centers)


def test_a_failed_start_from_weights_leaves_the_folder_free(data, world, tmp_path):
    config = override(
        tiny.config(data, tmp_path / "run"), [f"run.init_from={tmp_path / 'nowhere'}"]
    )
    with pytest.raises(ValueError, match="nowhere"):
        build(config, world)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_that_cannot_save_its_last_step_says_so(data, world, tmp_path, monkeypatch):
    """Once is tried again; twice is an error, not the exit code of a finished run."""
    complete, failures = files.complete, [OSError(28, "No space left on device")]

    def failing(final, **arguments):
        if final.name.endswith("15") and failures:
            raise failures[0]
        complete(final, **arguments)

    monkeypatch.setattr(files, "complete", failing)
    trainer = build(tiny.config(data, tmp_path / "run"), world)
    with pytest.raises(CheckpointError, match=r"step 15 is not saved.*step_000000010: .*No space"):
        trainer.run()
    failures.clear()
    resumed = build(tiny.config(data, tmp_path / "run"), world)
    assert resumed.steps_done == 10
    resumed.run()
    assert resumed.last_checkpoint.name == "step_000000015"


@pytest.mark.slow
def test_one_failed_save_is_a_warning_and_two_in_a_row_end_the_run(
    data, world, tmp_path, monkeypatch, caplog
):
    """The second is noticed at once, not an epoch later, and tried again first."""
    complete, failing = files.complete, {"05": 1, "15": 1, "20": 9}

    def fail(final, **arguments):
        if failing.get(final.name[-2:], 0):
            failing[final.name[-2:]] -= 1
            raise OSError(28, "No space left on device")
        complete(final, **arguments)

    monkeypatch.setattr(files, "complete", fail)
    trainer = build(override(tiny.config(data, tmp_path / "run"), ["run.epochs=6"]), world)
    with pytest.raises(CheckpointError, match=r"step 20 is not saved.*step_000000010: .*No space"):
        trainer.run()
    assert trainer.steps_done == 20
    assert failing["20"] == 6, "three tries"
    told = [r.getMessage() for r in caplog.records if "was not saved" in r.getMessage()]
    assert len(told) == 5


@pytest.mark.slow
def test_a_stop_before_the_first_step_leaves_the_checkpoint_as_it_is(data, world, tmp_path):
    steps = ["optim.schedule=step", "optim.decay_epochs=[2]"]  # more epochs may follow then
    config = override(tiny.config(data, tmp_path / "run"), steps)
    trainer = build(config, world)
    trainer.run()
    path = trainer.last_checkpoint
    before = files.read_about(path)
    assert before["accuracy"] == SCORES["accuracy"]
    resumed = build(override(config, ["run.epochs=4"]), world)
    with pytest.raises(Stopped, match="a test"):
        resumed._stop(Reason("a test", 0))
    resumed.close()
    assert files.read_about(path) == before


@pytest.mark.slow
def test_a_run_does_not_go_on_with_other_peoples_centers(data, world, tmp_path):
    """The same file, less one identity: labels mean what they meant, but the set is another."""
    build(tiny.config(data, tmp_path / "run"), world).run()
    (tmp_path / "drop.txt").write_text("identity 3\n")
    changed = override(
        tiny.config(data, tmp_path / "run"), [f"data.leave_out={tmp_path / 'drop.txt'}"]
    )
    with pytest.raises(CheckpointError, match="records and labels"):
        build(changed, world)


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
