"""Which checkpoint a run goes on from, and which it refuses."""

from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.training.saved import save
from tests.training.saving.test_checkpoint import CONFIG, train_step
from tests.training.saving.test_checkpoint_files import damage, fail_to_read
from training.saving import checkpoint, resume
from training.saving.files import CheckpointError

FACTS = {"model.name": "iresnet10", "number of classes": 11, "image size": (112, 112)}


@pytest.fixture(scope="module")
def saved(world, tmp_path_factory) -> Path:
    """A run's folder with the checkpoints of steps 5 and 10."""
    output = tmp_path_factory.mktemp("run")
    for number in (5, 10):
        save(output, step=number, config=CONFIG, train_step=train_step(), facts=FACTS)
    return output


@pytest.fixture
def run(saved, tmp_path) -> Path:
    return shutil.copytree(saved, tmp_path / "run")


def choose(output: Path, option: str = "auto", facts: dict | None = None) -> str | None:
    config = replace(CONFIG, run=replace(CONFIG.run, resume=option))
    path = resume.choose_checkpoint(output, config, facts=facts or FACTS)
    return path and path.name.removeprefix("step_").lstrip("0")


def shard(output: Path, step: int) -> Path:
    return output / "checkpoints" / f"step_{step:09d}" / "__0_0.distcp"


def test_the_newest_is_taken_and_none_where_there_is_none(run, tmp_path):
    assert choose(run) == "10"
    assert choose(tmp_path / "elsewhere") is None


def test_whether_a_run_begins_is_for_the_main_rank_to_see(run, tmp_path, monkeypatch):
    """A folder on a network may look different to others, which would wait for each other."""
    configs = [
        replace(CONFIG, run=replace(CONFIG.run, output=str(folder)))
        for folder in (run, tmp_path / "elsewhere")
    ]
    assert list(map(resume.starts_fresh, configs)) == [False, True]
    for seen in ([], [run / "checkpoints/step_000000005"]):
        monkeypatch.setattr(resume, "from_main", lambda own, seen=seen: seen)
        assert list(map(resume.starts_fresh, configs)) == [not seen] * 2


@pytest.mark.parametrize(
    ("harm", "fault"),
    [
        (lambda path: damage(path, at=999), "does not have its checksum"),
        (lambda path: path.unlink(), "__0_0.distcp is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "bytes instead of"),
    ],
)
def test_the_one_before_a_damaged_one_is_taken_with_a_warning(run, harm, fault, caplog):
    harm(shard(run, 10))
    assert choose(run) == "5"
    (record,) = caplog.records
    assert "step_000000010 is damaged: __0_0.distcp" in record.getMessage()
    assert fault in record.getMessage()


def test_a_damaged_one_is_left_until_the_next_save_and_one_that_was_not_read_for_good(
    run, monkeypatch
):
    """A network disk that is away for a moment costs nothing; for longer, it is the user's turn."""
    newest = shard(run, 10)
    fail_to_read(monkeypatch, newest.name, times=1, number=errno.ESTALE)
    assert choose(run) == "10"
    with monkeypatch.context() as patch:
        fail_to_read(patch, newest.name, times=999, number=errno.EIO)
        with pytest.raises(CheckpointError, match=rf"{newest} cannot be read, .*start again"):
            choose(run)
    assert choose(run) == "10"
    damage(newest)
    assert choose(run) == choose(run) == "5"
    assert newest.exists()
    save(run, step=7, config=CONFIG, train_step=train_step(), facts=FACTS)
    assert not newest.parent.exists()


def test_where_all_are_damaged_the_run_does_not_start_over_in_silence(run):
    damage(shard(run, 5))
    damage(shard(run, 10))
    for _ in range(2):  # nor at the next start
        with pytest.raises(CheckpointError, match=r"no checkpoint is whole.*step_0+10.*step_0+5"):
            choose(run)


def test_a_run_begins_at_the_path_and_then_goes_on_by_itself(run, saved, tmp_path):
    new = tmp_path / "new"
    assert choose(new, str(run)) == "10"
    five = saved / "checkpoints" / "step_000000005"
    assert choose(new, str(five)) == "5"
    assert choose(run, str(five)) == "10", "its own checkpoints come first"


def test_a_named_checkpoint_that_is_damaged_is_not_replaced_by_another(run, tmp_path):
    damage(shard(run, 10))
    assert choose(tmp_path / "new", str(run)) == "5", "of a run's folder the newest whole one"
    assert len(checkpoint.checkpoints(run)) == 2, "the other run's folder is left as it was"
    with pytest.raises(CheckpointError, match=r"no checkpoint is whole"):
        choose(tmp_path / "new", str(shard(run, 10).parent))


def test_going_back_in_the_same_folder_is_refused(run):
    assert choose(run, str(shard(run, 10).parent)) == "10"
    with pytest.raises(CheckpointError, match=r"is not the newest .* choose another run\.output"):
        choose(run, str(shard(run, 5).parent))


def test_a_path_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"run\.resume=nevr does not exist: expected auto"):
        choose(tmp_path, "nevr")


@pytest.mark.parametrize("fact", list(FACTS))
def test_another_model_head_or_dataset_is_named(run, tmp_path, fact):
    facts = FACTS | {fact: "other"}
    with pytest.raises(CheckpointError, match=f"is of another run: its {fact} is .*'other'"):
        choose(tmp_path / "new", str(run), facts)


def test_another_dataset_is_named_by_its_files(run, tmp_path):
    """Which may lie elsewhere now; in checkpoints of older versions they are not named."""
    held = {"dataset": "5f3a", resume.FILES: "data.train=runs/demo_data"}
    moved = held | {resume.FILES: "data.train=/elsewhere"}
    other = {"dataset": "77c0", resume.FILES: "data.train=data/mine data.leave_out=bad.txt"}
    (run / "run.json").write_text(json.dumps(held))
    resume.claim(run, CONFIG, facts=moved)
    message = (
        r"its dataset is that of data\.train=runs/demo_data \(5f3a\), "
        r"this one's is that of data\.train=data/mine data\.leave_out=bad\.txt \(77c0\)"
    )
    with pytest.raises(CheckpointError, match=message):
        resume.claim(run, CONFIG, facts=other)
    added = held | {"dataset": "77c0"}
    with pytest.raises(CheckpointError, match=r"dataset, of data\.train=runs/demo_data, changed"):
        resume.claim(run, CONFIG, facts=added)
    (run / "run.json").write_text(json.dumps({"dataset": "5f3a"}))
    with pytest.raises(CheckpointError, match=r"its dataset is '5f3a', this one's is that of"):
        resume.claim(run, CONFIG, facts=other)


def test_never_refuses_a_folder_with_checkpoints_alone(run):
    """As where somebody has removed the folder while the run went on: run.json is gone."""
    config = replace(CONFIG, run=replace(CONFIG.run, resume="never"))
    with pytest.raises(CheckpointError, match=r"already holds this run and run\.resume=never"):
        resume.claim(run, config, facts=FACTS)
    resume.claim(run, CONFIG, facts=FACTS)
    with pytest.raises(CheckpointError, match=r"holds another run: its model\.name is"):
        resume.claim(run, CONFIG, facts=FACTS | {"model.name": "other"})


@pytest.mark.parametrize("content", [None, "", '{"model.name": "ire', "[]"])
def test_a_lost_or_damaged_run_json_is_written_again_and_checkpoints_say_whose_they_are(
    run, caplog, content
):
    """As a power cut leaves it."""
    path = run / "run.json"
    for facts in (FACTS | {"model.name": "other"}, FACTS):
        if content is not None:
            path.write_text(content)
        if facts is FACTS:
            damage(run / "checkpoints" / "step_000000010" / "about.json")
            resume.claim(run, CONFIG, facts=facts)
        else:
            with pytest.raises(CheckpointError, match=r"holds another run: its model\.name is"):
                resume.claim(run, CONFIG, facts=facts)
    assert json.loads(path.read_text()) == json.loads(json.dumps(FACTS))
    assert f"{path} is missing or damaged" in caplog.text


def test_where_nothing_was_saved_a_damaged_run_json_is_written_again(tmp_path, monkeypatch):
    """Synced before it has its name: whoever loses power finds the old one or the new one."""
    path, calls = tmp_path / "run.json", []
    path.write_text("")
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *args, name=name, real=real: calls.append(name) or real(*args)
        )
    resume.claim(tmp_path, CONFIG, facts=FACTS)
    assert json.loads(path.read_text())["model.name"] == "iresnet10"
    assert calls == ["fsync", "replace"]
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]
