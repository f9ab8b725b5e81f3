"""launch/session.py: what a notebook's session installs, finds and takes over."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from launch import session
from tools.checks import packages


def run_folder(folder: Path, *, finished: bool, at: int) -> Path:
    folder.mkdir(parents=True)
    state = folder / "state.json"
    state.write_text(json.dumps({"finished": finished}))
    (folder / "checkpoint.bin").write_text(folder.name)
    os.utime(state, (at, at))
    return folder


def test_only_what_is_missing_is_asked_for_and_never_torch(monkeypatch):
    assert session.missing_requirements(None) == []
    monkeypatch.setattr(packages, "installed", lambda name: name not in ("rich", "torch") and "9")
    monkeypatch.setattr(packages.Wanted, "has", lambda self, version: self.name != "pyarrow")
    lines = session.missing_requirements("12.8")
    assert [line.split(">=")[0] for line in lines] == ["rich", "pyarrow"]


@pytest.mark.parametrize(("cuda", "wheel"), [("12.8", "cuda120"), ("13.0", "cuda130")])
def test_the_wheel_of_dali_follows_the_cuda_of_torch(monkeypatch, cuda, wheel):
    monkeypatch.setattr(packages, "installed", lambda name: "")
    named = [line for line in session.missing_requirements(cuda) if "dali" in line]
    assert len(named) == 1
    assert f"nvidia-dali-{wheel}" in named[0]


def test_the_one_training_set_is_found_at_any_depth_and_several_are_named(tmp_path):
    with pytest.raises(session.SessionError, match=r"no train\.rec"):
        session.find_training_set(tmp_path)
    first = tmp_path / "a/b/c"
    first.mkdir(parents=True)
    (first / "train.rec").touch()
    assert session.find_training_set(tmp_path) == first
    assert session.find_training_set(first) == first
    (tmp_path / "faces/ann").mkdir(parents=True)
    assert session.find_training_set(tmp_path / "faces") == tmp_path / "faces"
    (tmp_path / "train.rec").touch()
    with pytest.raises(session.SessionError) as caught:
        session.find_training_set(tmp_path)
    assert str(first) in str(caught.value)


def test_the_newest_unfinished_run_is_taken_over_once(tmp_path):
    before, output = tmp_path / "input", tmp_path / "working/run"
    run_folder(before / "v1/run", finished=False, at=1)
    newest = run_folder(before / "v2/run", finished=False, at=2)
    run_folder(before / "v3/run", finished=True, at=3)
    (before / "other").mkdir()
    (before / "other/state.json").write_text("[]")
    for path in newest.iterdir():
        path.chmod(0o444)
    newest.chmod(0o555)

    assert session.take_over(before, output) == newest
    assert json.loads((output / "state.json").read_text()) == {"finished": False}
    (output / "checkpoint.bin").write_text("newer")  # writable, though its original was not
    assert session.take_over(before, output) is None
    assert (output / "checkpoint.bin").read_text() == "newer"
    assert sorted(path.name for path in output.parent.iterdir()) == ["run"]


def test_a_copy_that_was_cut_off_is_begun_again(tmp_path):
    before, output = tmp_path / "input", tmp_path / "run"
    run_folder(before / "run", finished=False, at=1)
    shutil.copytree(before / "run", tmp_path / "run.partial")
    (tmp_path / "run.partial/left").touch()
    assert session.take_over(before, output)
    assert not (output / "left").exists()


def test_there_is_nothing_to_take_over_where_runs_are_finished_or_the_output_itself(tmp_path):
    run_folder(tmp_path / "done", finished=True, at=1)
    assert session.take_over(tmp_path, tmp_path / "new") is None
    assert session.take_over(tmp_path / "nowhere", tmp_path / "new") is None


def test_a_rank_for_each_gpu_and_settings_of_ones_own_last(tmp_path):
    (tmp_path / "lfw.bin").touch()
    (tmp_path / "calfw.bin").touch()
    given = {"config": Path("c.py"), "data": tmp_path, "output": Path("out"), "hours": 11.5}
    two = session.training_command(**given, gpus=2, settings=["eval.sets=[]"])
    assert "--nproc_per_node=2" in two
    assert two[-5:] == [
        *(f"data.train={tmp_path}", "run.output=out", "run.max_hours=11.5"),
        *(f"eval.sets=[{tmp_path / 'lfw.bin'}]", "eval.sets=[]"),
    ]
    assert "torch.distributed.run" not in session.training_command(**given, gpus=1, settings=[])
