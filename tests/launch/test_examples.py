"""The other files of launch/: scripts parse, and what they name is there."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from facestream import USER_ERROR_EXIT_CODE
from training.config import load_config

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"


@pytest.mark.parametrize("name", ["slurm.sbatch", "machine.sh", "offline/install.sh"])
def test_scripts_parse(name):
    subprocess.run(["bash", "-n", str(LAUNCH / name)], check=True)


def test_a_machine_starts_a_rank_for_each_gpu_and_hands_settings_on(tmp_path):
    """With a Python that counts eight GPUs, and a torchrun that says how it was called."""
    for name, script in {
        "python": "echo 8",
        "torchrun": 'printf "%s\\n" "$@" "threads $OMP_NUM_THREADS"',
    }.items():
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    copy = tmp_path / "launch/machine.sh"
    copy.parent.mkdir()
    copy.write_bytes((LAUNCH / "machine.sh").read_bytes())
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    environment.pop("OMP_NUM_THREADS", None)

    def start(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", str(copy), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    called = start("configs/x.py", "head.loss_args={margin: 0.4}").stdout.splitlines()
    assert "--nproc_per_node=8" in called
    assert called[-4:] == [
        *("train_dist.py", "configs/x.py", "head.loss_args={margin: 0.4}", "threads 1")
    ]
    without = start()
    assert "expected a configuration" in without.stderr
    assert without.returncode == USER_ERROR_EXIT_CODE


def test_the_job_for_kubernetes_names_what_is_there():
    job = yaml.safe_load((LAUNCH / "pytorchjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    worker = job["spec"]["pytorchReplicaSpecs"]["Worker"]
    pod = worker["template"]["spec"]
    (container,) = pod["containers"]
    assert container["name"] == "pytorch"
    _, script, config, *settings = container["command"]
    assert (ROOT / script).exists()
    load_config(ROOT / config, settings)
    gpus = container["resources"]["limits"]["nvidia.com/gpu"]
    assert int(job["spec"]["nprocPerNode"]) == gpus
    assert job["spec"]["elasticPolicy"]["minReplicas"] == worker["replicas"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in pod["volumes"]
    }


def test_the_image_is_built_of_what_is_there():
    """No Docker here: every instruction is known, and every file it copies exists."""
    lines = (LAUNCH / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    instructions = [line.split() for line in lines if line and not line.startswith("#")]
    assert [words[0] for words in instructions] == [
        *("FROM", "RUN", "WORKDIR", "COPY", "RUN", "COPY", "CMD")
    ]
    for words in instructions:
        if words[0] == "COPY":
            assert (ROOT / words[1]).exists()
    # A rebuilt environment or a training set must not go into the image.
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".venv*", "data", "runs", ".git"} <= set(ignored)
