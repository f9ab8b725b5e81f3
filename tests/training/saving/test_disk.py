"""Checkpoints on disks that lack what mounted buckets and shares lack, and on those that fail."""

from __future__ import annotations

import errno
import json
import mmap
import os
import shutil

import pytest

from pipeline.records import sidecar
from pipeline.whole_file import replace
from tests.bad_disk import FAULTS, break_disk
from tests.training import tiny
from tests.training.saved import save
from tests.training.saving.test_checkpoint import CONFIG, same, tensors, train_step
from training.loop import Trainer
from training.saving import checkpoint, disk, files, lock, resume
from training.saving.files import CheckpointError
from training.step.precision import choose_precision

ALL = " ".join(FAULTS)


def test_the_faults_are_what_they_say(tmp_path, monkeypatch):
    """Or what follows would prove nothing."""
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    file = tmp_path / "file"
    file.write_bytes(b"bytes")
    break_disk(monkeypatch, *FAULTS)
    with pytest.raises(OSError, match="Too many open files"):
        os.rename(tmp_path / "folder", tmp_path / "other")
    with pytest.raises(OSError, match="not implemented"):
        os.replace(file, tmp_path / "other")
    with file.open("rb") as stream:
        with pytest.raises(OSError, match="Invalid argument"):
            os.fsync(stream.fileno())
        with pytest.raises(OSError, match="No such device"):
            mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)


@pytest.mark.parametrize("faults", [*FAULTS, ALL])
def test_checkpoints_are_written_read_replaced_and_removed(faults, world, tmp_path, monkeypatch):
    break_disk(monkeypatch, *faults.split())
    step = train_step()
    for number in (1, 2, 3, 3):
        path = save(tmp_path, step=number, config=CONFIG, train_step=step)
    assert [p.name[-1] for p in files.checkpoints(tmp_path)] == ["2", "3"]
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {path.name, "step_000000002"}
    assert files.faults(path) == []
    assert {file.name for file in path.iterdir()} == {
        *("__0_0.distcp", ".metadata", "about.json", "config.json", "manifest.json")
    }
    other = train_step(seed=1)
    assert checkpoint.load(resume.choose_checkpoint(tmp_path, CONFIG, facts={}), train_step=other)
    assert same(tensors(other), tensors(step))


@pytest.mark.slow
def test_a_whole_run_and_its_resume_need_no_more(data, world, tmp_path, monkeypatch, capsys):
    """With the training set there, too, and an index too long to be held in memory."""
    shutil.copytree(data, tmp_path / "data")
    monkeypatch.setattr(sidecar, "_IN_MEMORY", 0)
    break_disk(monkeypatch, *FAULTS)
    precision = choose_precision(world.device, "fp32")
    for begins_at in (0, 15):
        trainer = Trainer(
            tiny.config(tmp_path / "data", tmp_path / "run"),
            world,
            precision=precision,
        )
        assert trainer.steps_done == begins_at
        trainer.run()
    message = capsys.readouterr().out
    assert "files cannot be synced" in message
    assert "files cannot be renamed" in message
    path = files.newest(tmp_path / "run")
    assert (path.name, files.faults(path)) == ("step_000000015", [])


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ("", ""),
        ("nodirrename", ""),  # which nobody needs
        ("nofsyncdir", "folders cannot be synced: a power cut may cost the newest checkpoint"),
        ("nofsync", "files cannot be synced: a power cut may damage the newest checkpoint"),
        ("norename", "files cannot be renamed: one whose writing is cut off is not used"),
    ],
)
def test_the_probe_says_what_a_disk_can_do_and_leaves_nothing(
    faults, message, tmp_path, monkeypatch
):
    (tmp_path / "probe_1").mkdir()
    (tmp_path / "probe_1" / "file").write_text("of a process that was killed")
    break_disk(monkeypatch, *faults.split())
    assert "; ".join(disk.probe(tmp_path).lacks()) == message
    assert not list(tmp_path.iterdir())


def test_a_disk_that_deletes_nothing_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(disk.shutil, "rmtree", lambda *args, **more: None)
    (lack,) = disk.probe(tmp_path).lacks()
    assert lack.startswith("nothing can be deleted: checkpoints pile up")


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["fsync", "mkdir"])
def test_where_nothing_can_be_saved_it_is_said_before_the_first_step(
    number, call, tmp_path, monkeypatch
):
    def fail(*args, **more):
        raise OSError(number, os.strerror(number))

    (tmp_path / "run").mkdir()
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(CheckpointError, match=rf"run/?: nothing can be saved there.*{number}"):
        resume.open_output(tmp_path / "run")


def test_a_full_disk_of_the_checkpoints_is_found_before_the_first_step(tmp_path, monkeypatch):
    real = disk.probe
    monkeypatch.setattr(resume, "probe", lambda folder: fill(folder) or real(folder))

    def fill(folder):
        if folder.name == "checkpoints":
            raise OSError(errno.ENOSPC, "No space left on device", str(folder))

    with pytest.raises(CheckpointError, match=r"nothing can be saved there \(.*No space.*checkpoi"):
        resume.open_output(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "lock.json").read_text())["released"]
    monkeypatch.setattr(resume, "probe", real)
    held, _ = resume.open_output(tmp_path / "run")  # what that start left is no stranger's
    held.release()


def test_nothing_is_tried_out_in_a_folder_that_another_process_holds(tmp_path):
    """Of two starts at once the second must not clear away what the first is trying out."""
    other = lock._this_process.__wrapped__(os.getppid())
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / lock.FILE).write_text(json.dumps(other))
    trial = tmp_path / "probe_1"
    trial.mkdir()
    with pytest.raises(CheckpointError, match=f"in use by process {os.getppid()}"):
        resume.open_output(tmp_path)
    assert trial.exists()


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_fails_is_not_one_that_lacks_something(call, tmp_path, monkeypatch):
    """An input/output error costs the save; nothing is taken for saved that is not."""

    def fail(*args, **more):
        raise OSError(errno.EIO, "Input/output error")

    file = tmp_path / "file"
    file.write_bytes(b"1")
    monkeypatch.setattr(os, call, fail)
    act = {
        "replace": lambda: replace(file, tmp_path / "other"),
        "fsync": lambda: disk.sync_folder(tmp_path),
    }[call]
    with pytest.raises(OSError, match="Input/output error"):
        act()
