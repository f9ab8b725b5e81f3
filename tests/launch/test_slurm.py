"""launch/slurm.sbatch, with commands that only write down how they were called."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from facestream import USER_ERROR_EXIT_CODE
from tests.training import tiny

SCRIPT = Path(__file__).parents[2] / "launch/slurm.sbatch"
SRUN = '#!/bin/sh\nprintf "%s\\n" "$@" > srun.txt\nexit 1\n'  # as torchrun after a signal
SCONTROL = '#!/bin/sh\necho "$@" >> scontrol.txt\nprintf "node7\\nnode8\\n"\n'


def submit(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").touch()
    for name, content in (("srun", SRUN), ("scontrol", SCONTROL)):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
        path.chmod(0o755)
    slurm = {"SLURM_JOB_ID": "42", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "node[7-8]"}
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments],
        cwd=tmp_path,
        env=os.environ | slurm | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("status", "code", "queued"),
    [("stopped", 1, True), ("finished", 0, False), ("failed", 1, False), (None, 1, False)],
)
def test_a_run_that_was_stopped_is_queued_again_and_no_other(tmp_path, status, code, queued):
    output = tmp_path / "runs" / "x y"
    if status:
        output.mkdir(parents=True)
        (output / "state.json").write_text(json.dumps({"status": status}))
    done = submit(tmp_path, str(output), "configs/c.py", "head.loss_args={margin: 0.4}")
    assert done.returncode == code, done.stderr
    called = (tmp_path / "srun.txt").read_text().splitlines()
    assert called[0] == "torchrun"
    assert "--rdzv-endpoint=node7:29500" in called
    assert called[-4:] == [
        *("train_dist.py", "configs/c.py", f"run.output={output}", "head.loss_args={margin: 0.4}")
    ]
    asked = (tmp_path / "scontrol.txt").read_text().splitlines()
    assert ("requeue 42" in asked) is queued


@pytest.mark.parametrize("arguments", [(), ("runs/x",)])
def test_without_a_folder_and_a_configuration_it_says_what_it_expects(tmp_path, arguments):
    done = submit(tmp_path, *arguments)
    assert done.returncode
    assert "sbatch launch/slurm.sbatch runs/x configs/ms1mv2_r50.py" in done.stderr
    assert not (tmp_path / "srun.txt").exists()


# What Slurm does on two machines, on one: the command twice, a rank each.
BOTH = """#!/bin/sh
for node in 0 1; do
  for word; do
    shift
    [ "$word" = --nproc_per_node=gpu ] && word=--nproc_per_node=1
    set -- "$@" "$word"
  done
  "$@" & pids="$pids $!"
done
for pid in $pids; do wait $pid || code=$?; done
exit ${code:-0}
"""


@pytest.mark.slow(seconds=13)
def test_its_command_lines_train_as_two_processes_that_meet(tmp_path):
    root = SCRIPT.parents[1]
    data, output = tiny.write_set(tmp_path / "data"), tmp_path / "run"
    config = tmp_path / "config.py"
    config.write_text(
        "from pathlib import Path\n"
        "from tests.training.tiny import config\n"
        f"config = config(Path({str(data)!r}), Path('unknown'))\n"
    )
    for name, content in (("srun", BOTH), ("scontrol", "#!/bin/sh\necho localhost\n")):
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": "42", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "node[7-8]"}
    done = subprocess.run(
        ["bash", str(SCRIPT), str(output), str(config), "run.epochs=1"],
        cwd=root,
        env=os.environ
        | slurm
        | {"PATH": f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((output / "state.json").read_text())["status"] == "finished"
    assert re.search(r"ranks +2 on", (output / "run.log").read_text())


def test_without_a_configuration_it_says_what_it_expects(tmp_path):
    done = submit(tmp_path, "runs/x")
    assert "expected a folder and a configuration" in done.stderr
    assert done.returncode == USER_ERROR_EXIT_CODE
