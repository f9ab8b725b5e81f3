"""A run saves before it verifies: what ends a verification costs no epoch and is made up for."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models import fold_batch_norm
from tests.ranks import run_ranks
from tests.training import tiny
from training.config import Config, override
from training.distributed import World
from training.loop import Trainer
from training.saving import checkpoint, digests, files
from training.step.backbone import unwrapped
from training.step.precision import choose_precision


def scores(accuracy: float) -> dict[str, dict[str, float]]:
    score = {"accuracy": accuracy, "accuracy_std": 0.1, "auc": 0.6, "tar_at_far": 0.0, "far": 0.0}
    return {"pairs": score}


class Examiner:
    """Verifies by a list of accuracies; an exception in it is raised. Counts how often."""

    def __init__(self, *results: float | BaseException) -> None:
        self.results, self.calls = list(results), 0

    def __call__(self, network: torch.nn.Module) -> dict[str, dict[str, float]]:
        self.calls += 1
        result = self.results.pop(0)
        if isinstance(result, BaseException):
            raise result
        return scores(result)


def build(config: Config, world: World, *examine: Callable, names=("pairs", "other")) -> Trainer:
    precision = choose_precision(world.device, "fp32")
    sets = [tiny.scored(config, one, name) for one, name in zip(examine, names)]
    return Trainer(config, world, precision=precision, sets=sets)


def verified(output: Path) -> dict[int, list[float]]:
    """The accuracies in metrics.jsonl by step."""
    found: dict[int, list[float]] = {}
    for line in map(json.loads, (output / "metrics.jsonl").read_text().splitlines()):
        if "verification" in line:
            found.setdefault(line["step"], []).append(line["verification"]["pairs"]["accuracy"])
    return found


def accuracies(output: Path) -> dict[int, float | None]:
    """Those of the checkpoints by step."""
    abouts = map(files.read_about, files.checkpoints(output))
    return {about["step"]: about["accuracy"] for about in abouts}


@pytest.fixture
def config(data, tmp_path) -> Config:
    return override(tiny.config(data, tmp_path / "run"), ["run.epochs=2"])


@pytest.mark.slow
@pytest.mark.parametrize("end", [5, 10], ids=["an epoch's end", "the last step"])
def test_what_ends_a_verification_costs_no_epoch_and_is_made_up_for(end, config, world):
    before = [0.1, 0.2][: end // 5]
    broken = build(config, world, Examiner(*before, RuntimeError("lfw.bin is gone")))
    with pytest.raises(RuntimeError, match=r"lfw\.bin is gone"):
        broken.run()
    saved = files.newest(broken.output)
    assert saved.name == f"step_{end:09d}"
    assert files.faults(saved) == []
    assert accuracies(broken.output)[end] is None
    assert end not in verified(broken.output)

    examiner = Examiner(0.7, 0.6)
    resumed = build(config, world, examiner)
    assert resumed.steps_done == end
    resumed.run()
    assert examiner.calls == (10 - end) // 5 + 1, "once for what was left out"
    assert verified(resumed.output)[end] == [0.7]
    assert accuracies(resumed.output)[end] == 0.7
    assert files.best(resumed.output) == saved

    again = Examiner()
    build(config, world, again).run()
    assert again.calls == 0, "what is known is not verified again"


def test_a_run_is_verified_every_so_many_of_its_steps_too(config, world):
    """Beside the ends of epochs, at 5 and 10; a state that is both counts once."""
    trainer = build(override(config, ["eval.every_steps=3"]), world, Examiner(*[0.5] * 6))
    trainer.run()
    assert sorted(verified(trainer.output)) == [0, 3, 5, 6, 9, 10]
    assert all(len(found) == 1 for found in verified(trainer.output).values())


def test_scores_that_only_the_journal_has_reach_the_checkpoint(config, world):
    """As where the run was killed just after a verification was reported."""
    first = build(config, world, Examiner(0.1, 0.2, 0.9))
    first.run()
    (first.last_checkpoint / "scores.json").unlink()
    examiner = Examiner()
    again = build(config, world, examiner)
    assert again.run() == scores(0.9)
    assert examiner.calls == 0
    assert accuracies(again.output)[10] == 0.9
    assert verified(again.output)[10] == [0.9], "reported once"


@pytest.mark.slow
def test_another_set_is_verified_though_the_scores_of_the_old_ones_are_known(config, world):
    build(config, world, Examiner(0.5, 0.6, 0.7)).run()
    examine = Examiner(0.8)
    again = build(config, world, examine, names=["other"])
    again.run()
    assert examine.calls == 1, "the finished run's last state"
    about = files.read_about(again.last_checkpoint)
    assert {name: found["accuracy"] for name, found in about["scores"].items()} == {
        "pairs": 0.7,
        "other": 0.8,
    }
    assert (about["accuracy"], about["compared_by"]) == (0.8, ["other"])


@pytest.mark.slow
def test_sets_are_scored_at_intervals_of_their_own(config, world):
    """And the best is the best on those that are scored most often, not by the luck of the others.

    Of four epochs `pairs` is scored after each, `other` after the third and the last.
    """
    config = override(config, ["run.epochs=4", "run.save_every=1"])
    often, seldom = Examiner(0.1, 0.3, 0.9, 0.4, 0.5), Examiner(0.2, 0.95, 0.96)
    sets = [
        tiny.scored(config, often),
        replace(tiny.scored(config, seldom, "other"), every=3),
    ]
    precision = choose_precision(world.device, "fp32")
    trainer = Trainer(config, world, precision=precision, sets=sets)
    last = trainer.run()
    assert (often.calls, seldom.calls) == (5, 3)
    assert {name: found["accuracy"] for name, found in last.items()} == {
        "pairs": 0.5,
        "other": 0.96,
    }
    assert accuracies(trainer.output) == {10: 0.9, 15: 0.4, 20: 0.5}
    assert files.best(trainer.output) == files.folder_of(trainer.output, 10)
    message = (trainer.output / "run.log").read_text()
    assert re.findall(r"\[other\]\[(\d+)\] Accuracy", message) == ["0", "15", "20"]


@pytest.mark.slow
def test_of_two_sets_only_the_one_that_is_missing_is_scored_when_a_run_goes_on(config, world):
    broken = build(config, world, Examiner(0.1, 0.2), Examiner(0.1, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        broken.run()
    first, second = Examiner(0.8), Examiner(0.3, 0.4)
    resumed = build(config, world, first, second)
    resumed.run()
    assert (first.calls, second.calls) == (1, 2)
    assert accuracies(resumed.output) == {5: 0.25, 10: pytest.approx(0.6)}


@pytest.mark.slow
def test_the_last_state_is_scored_on_all_sets_where_one_is_missing(config, world):
    """So that the report is of all of them."""
    broken = build(config, world, Examiner(0.1, 0.2, 0.3), Examiner(0.1, 0.2, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        broken.run()
    examiners = [Examiner(0.3), Examiner(0.5)]
    build(config, world, *examiners).run()
    assert [examiner.calls for examiner in examiners] == [1, 1]


@pytest.mark.slow
def test_a_finished_run_is_no_start_for_one_without_further_steps(config, world, tmp_path):
    """It would be finished at once, never trained with what it was asked for."""
    build(config, world, Examiner(0.5, 0.6, 0.7)).run()
    last = files.newest(Path(config.run.output))
    begin = [f"run.output={tmp_path / 'new'}", f"run.resume={last}", "head.sample_rate=0.5"]
    with pytest.raises(files.CheckpointError, match=r"10 steps, and this run has 10.*init_from"):
        build(override(config, begin), world, Examiner())
    further = override(config, [*begin, "run.epochs=3"])
    build(further, world, Examiner(0.6, 0.7)).run()


@pytest.mark.slow
def test_scores_in_about_json_are_read_as_older_runs_wrote_them(config, world):
    first = build(config, world, Examiner(0.1, 0.2, 0.9))
    first.run()
    folder = first.last_checkpoint
    (folder / "scores.json").unlink()
    about = json.loads((folder / "about.json").read_text())
    content = json.dumps(about | {"scores": scores(0.8), "accuracy": 0.8}).encode()
    (folder / "about.json").write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    with digests.DigestedFile(folder / "about.json") as file:
        file.write(content)
    manifest["files"]["about.json"] = file.digest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert build(config, world, Examiner()).run() == scores(0.8)


@pytest.mark.slow
def test_a_damaged_scores_json_costs_one_verification(config, world):
    first = build(config, world, Examiner(0.1, 0.2, 0.9))
    first.run()
    first.reporter.journal.path.unlink()
    (first.last_checkpoint / "scores.json").write_text('{"scores": {"pai')
    assert files.faults(first.last_checkpoint) == []
    examiner = Examiner(0.9)
    build(config, world, examiner).run()
    assert examiner.calls == 1
    assert accuracies(first.output)[10] == 0.9


@pytest.mark.slow
def test_a_run_that_begins_at_anothers_checkpoint_writes_nothing_there(config, world, tmp_path):
    first = build(config, world, Examiner(0.1, 0.2, 0.9))
    first.run()
    (first.last_checkpoint / "scores.json").unlink()
    before = sorted(first.output.rglob("*"))
    elsewhere = [f"run.output={tmp_path / 'other'}", f"run.resume={first.last_checkpoint}"]
    examiner = Examiner(0.9, 0.9)
    build(override(config, [*elsewhere, "run.epochs=3"]), world, examiner).run()
    assert examiner.calls == 2, "where it begins, and at its end"
    assert sorted(first.output.rglob("*")) == before


@pytest.mark.slow
def test_the_best_stays_though_its_scores_came_after_it(config, world):
    """And the newest, whose scores are not known while others are removed."""
    examiner = Examiner(0.1, 0.9, 0.3, 0.2, 0.4, RuntimeError("killed"))
    trainer = build(override(config, ["run.epochs=5", "run.keep=1"]), world, examiner)
    with pytest.raises(RuntimeError, match="killed"):
        trainer.run()
    assert accuracies(trainer.output) == {5: 0.9, 20: 0.4, 25: None}


def test_scores_wait_for_a_checkpoint_that_is_saved_at_the_second_try(config, world, monkeypatch):
    complete, failures = files.complete, [OSError(28, "No space left on device")]

    def failing(final, **arguments):
        if final.name.endswith("10") and failures:
            raise failures.pop()
        complete(final, **arguments)

    monkeypatch.setattr(files, "complete", failing)
    trainer = build(config, world, Examiner(0.1, 0.2, 0.9))
    trainer.run()
    assert not failures
    assert accuracies(trainer.output) == {5: 0.2, 10: 0.9}


def test_scores_that_cannot_be_written_are_tried_again_at_the_next_save(
    config, world, monkeypatch, caplog
):
    write, failures = files.write_scores, [OSError(28, "No space left on device")]

    def failing(path, found, **options):
        if failures:
            raise failures.pop()
        write(path, found, **options)

    monkeypatch.setattr(files, "write_scores", failing)
    trainer = build(config, world, Examiner(0.1, 0.2, 0.9))
    trainer.run()
    assert "step_000000005 were not written ([Errno 28] No space" in caplog.text
    assert accuracies(trainer.output) == {5: 0.2, 10: 0.9}


def train_an_epoch(world: World, config: Config) -> bool:
    """Whether the network that was verified has the very bits of the one that was saved."""
    seen = []

    def examine(backbone: torch.nn.Module) -> dict[str, dict[str, float]]:
        seen.append([tensor.clone() for tensor in backbone.state_dict().values()])
        return scores(0.5)

    trainer = build(config, world, examine)
    trainer.run()
    checkpoint.load(trainer.last_checkpoint, train_step=trainer.step)
    saved = fold_batch_norm(unwrapped(trainer.step.backbone), run_on=world.device)
    return all(
        torch.equal(a, b) for a, b in zip(seen[-1], saved.state_dict().values(), strict=True)
    )


@pytest.mark.slow
def test_what_is_verified_is_what_was_saved_on_three_ranks(config, tmp_path):
    """Averaged twice over three ranks, BatchNorm's statistics would change in their last bits."""
    config = override(config, ["run.epochs=1"])
    assert all(run_ranks(train_an_epoch, config, world_size=3, folder=tmp_path))


def test_a_checkpoint_is_copied_with_its_scores(config, world, tmp_path):
    first = build(config, world, Examiner(0.1, 0.2, 0.9))
    first.run()
    copied = files.folder_of(tmp_path / "copy", 10)
    shutil.copytree(first.last_checkpoint, copied)
    assert files.best(tmp_path / "copy") == copied
    assert files.faults(copied) == []
