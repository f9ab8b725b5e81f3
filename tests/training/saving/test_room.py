"""The room that checkpoints take is known before the first step, and asked for."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from tests.training.saved import save
from tests.training.saving.test_checkpoint import CONFIG, train_step
from training.config import Config, EvalConfig
from training.saving import checkpoint, room
from training.saving.files import CheckpointError, least_kept


@pytest.fixture
def step(world) -> SimpleNamespace:
    """One whose tensors are larger than all else in a checkpoint."""
    return train_step(classes=20_000, width=30_000)


def ask(output, step, *, free: int | None, config: Config = CONFIG, monkeypatch, done: int = 0):
    """With so many bytes free."""
    found = SimpleNamespace(f_bavail=free or 0, f_frsize=1, f_blocks=0 if free is None else 9)
    monkeypatch.setattr(room.os, "statvfs", lambda folder: found)
    config = replace(config, run=replace(config.run, output=str(output)))
    return room.require_room(config, step, steps_done=done, steps_per_epoch=10)


def with_run(**changes) -> Config:
    return replace(CONFIG, run=replace(CONFIG.run, **changes))


def test_a_checkpoint_is_as_large_as_predicted(step, tmp_path):
    path = save(tmp_path, step=1, config=CONFIG, train_step=step)
    written = sum(file.stat().st_size for file in path.iterdir())
    assert room.checkpoint_bytes(step) == pytest.approx(written, rel=0.05)
    assert room.checkpoint_bytes(step) > 10**6


@pytest.mark.parametrize(
    ("config", "at_once"),
    [
        (with_run(keep=2), 3),
        (with_run(keep=1), 3),  # two sound ones stay all the same
        (with_run(keep=4), 5),
        (replace(with_run(keep=2), eval=EvalConfig(sets=("lfw.bin",))), 4),
        (with_run(keep=9, epochs=4), 4),  # no more are ever written
        (with_run(keep=9, epochs=4, save_every=3), 2),
        (with_run(keep=99, epochs=2, save_steps=3), 8),
    ],
)
def test_what_is_kept_is_counted_with_the_one_being_written(
    config, at_once, step, tmp_path, monkeypatch
):
    found = ask(tmp_path, step, free=10**9, config=config, monkeypatch=monkeypatch)
    assert found.at_once == at_once
    assert found.missing == at_once * found.each


def test_what_cannot_fit_is_refused_with_how_many_would(step, tmp_path, monkeypatch):
    each = room.checkpoint_bytes(step)
    config = with_run(keep=5)
    assert ask(tmp_path, step, free=6 * each, config=config, monkeypatch=monkeypatch).at_once == 6
    complaint = r"6 checkpoints of .* MB lie .*room for 5 in all\. Set run\.keep=4, make room, or"
    with pytest.raises(CheckpointError, match=complaint):
        ask(tmp_path, step, free=6 * each - 1, config=config, monkeypatch=monkeypatch)
    with pytest.raises(CheckpointError, match=r"room for 2 in all\. Make room, or choose"):
        ask(tmp_path, step, free=2 * each, config=config, monkeypatch=monkeypatch)
    with pytest.raises(CheckpointError, match=r"0 MB are free, not enough for a single one\. Make"):
        ask(tmp_path, step, free=0, config=config, monkeypatch=monkeypatch)


def test_the_remedy_is_accepted(step, tmp_path, monkeypatch):
    each = room.checkpoint_bytes(step)
    config = replace(with_run(keep=9), eval=EvalConfig(sets=("lfw.bin",)))
    for fit in range(4, 10):
        with pytest.raises(CheckpointError) as refused:
            ask(tmp_path, step, free=fit * each, config=config, monkeypatch=monkeypatch)
        keep = int(str(refused.value).partition("Set run.keep=")[2].partition(",")[0])
        lower = replace(config, run=replace(config.run, keep=keep))
        found = ask(tmp_path, step, free=fit * each, config=lower, monkeypatch=monkeypatch)
        assert found.at_once == fit


def test_what_a_run_has_already_counts_as_its_own(step, tmp_path, monkeypatch):
    for number in (10, 20):
        save(tmp_path, step=number, config=CONFIG, train_step=step)
    found = ask(tmp_path, step, free=10**9, monkeypatch=monkeypatch, done=20)
    assert found.held == pytest.approx(2 * found.each, rel=0.05)
    assert found.missing == found.each, "one is written before another goes"
    ask(tmp_path, step, free=found.each, monkeypatch=monkeypatch, done=20)
    with pytest.raises(CheckpointError):
        ask(tmp_path, step, free=found.each - 1, monkeypatch=monkeypatch, done=20)


def test_the_room_is_that_of_the_disk_where_checkpoints_lie(step, tmp_path, monkeypatch):
    """Which may be a link to another one."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (tmp_path / "checkpoints").symlink_to(scratch)
    asked = []
    found = SimpleNamespace(f_bavail=10**9, f_frsize=1, f_blocks=9)
    monkeypatch.setattr(room.os, "statvfs", lambda path: asked.append(path.resolve()) or found)
    room.require_room(with_run(output=str(tmp_path)), step, steps_done=0, steps_per_epoch=10)
    assert asked == [scratch]


def test_a_finished_run_needs_none_and_an_unknown_disk_is_not_judged(step, tmp_path, monkeypatch):
    assert ask(tmp_path, step, free=0, monkeypatch=monkeypatch, done=200).missing == 0
    assert "an unknown amount free" in str(ask(tmp_path, step, free=None, monkeypatch=monkeypatch))


def test_the_floor_is_what_retain_leaves(world, tmp_path):
    step = train_step()
    config = with_run(keep=1)
    for number in range(4):
        save(tmp_path, step=number, config=config, train_step=step)
    assert len(checkpoint.checkpoints(tmp_path)) == least_kept(1) == 2
