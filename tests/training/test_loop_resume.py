"""A run goes on where it stopped, bit for bit, whatever it trains with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.training import tiny
from tests.training.runs import build, state
from training.config import override
from training.loop import Trainer
from training.step.backbone import unwrapped

HEAD_SCHEDULES = [
    "head.loss=adaface",
    "head.loss_args={scale: 16.0}",
    "head.sample_rate=0.3",
    "head.sample_rate_from={1: 0.6, 2: 1.0}",
    "head.margin_warmup_epochs=1.4",
    "head.subcenters=2",
]


def require_the_same_after_a_resume(whole: Trainer, *, last: int, before: int) -> None:
    """Without its checkpoint of step `last` a run resumes at `before` and ends in the same bits."""
    for path in (whole.output / "checkpoints").glob(f"step_*{last}"):
        shutil.rmtree(path)
    resumed = build(whole.config, whole.world)
    assert resumed.steps_done == before
    resumed.run()
    assert all(torch.equal(a, b) for a, b in zip(state(whole), state(resumed), strict=True))


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
    require_the_same_after_a_resume(whole, last=15, before=10)


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
    require_the_same_after_a_resume(whole, last=24, before=16)


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
    require_the_same_after_a_resume(whole, last=15, before=10)


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
