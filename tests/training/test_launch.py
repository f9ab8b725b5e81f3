"""What launchers say: what is incomplete, contradicts itself, or makes copies, is named."""

from __future__ import annotations

import pytest

from training.distributed import join_world
from training.launch import LaunchError, Place, read_place

WHOLE = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}
ALONE = Place(rank=0, world_size=1, local_rank=0, local_world_size=1)


def read(environment: dict[str, str], *, gpus: int = 2, address: bool = True) -> Place:
    return read_place(environment, gpus=gpus, address=address)


def test_torchruns_word_is_taken():
    assert read(WHOLE) == Place(rank=3, world_size=4, local_rank=1, local_world_size=2)
    assert read({}) == ALONE


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("RANK", "RANK is not set, but WORLD_SIZE=4"),
        ("WORLD_SIZE", "WORLD_SIZE is not set, but RANK=3"),
        ("LOCAL_RANK", "LOCAL_RANK is not set, but WORLD_SIZE=4 and 2 GPUs are here"),
        ("MASTER_ADDR", "MASTER_ADDR is not set"),
        ("MASTER_PORT", "MASTER_PORT is not set"),
    ],
)
def test_what_is_missing_is_named_with_the_line_that_sets_it(missing, message):
    environment = {key: value for key, value in WHOLE.items() if key != missing}
    with pytest.raises(LaunchError, match=rf"{message}.*torchrun --standalone --nproc_per_node="):
        read(environment)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("RANK", "4", "RANK=4 and WORLD_SIZE=4: ranks count from 0"),
        ("RANK", "-1", "RANK='-1': expected a number"),
        ("WORLD_SIZE", "four", "WORLD_SIZE='four': expected a number"),
        ("LOCAL_RANK", "", "LOCAL_RANK='': expected a number"),
        ("LOCAL_RANK", "2", "LOCAL_RANK=2 and LOCAL_WORLD_SIZE=2"),
        ("MASTER_PORT", "http", "MASTER_PORT='http': expected a number"),
    ],
)
def test_what_makes_no_sense_is_named(key, value, message):
    with pytest.raises(LaunchError, match=rf"{message}.*torchrun"):
        read(WHOLE | {key: value})


@pytest.mark.parametrize(
    ("environment", "count"),
    [
        # srun's tasks; and an old srun's, or a batch script that asked for tasks and starts one.
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "4"}, 4),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, 2),
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "8"}, 8),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, 2),
    ],
)
def test_copies_that_would_train_beside_one_another_are_refused(environment, count):
    with pytest.raises(
        LaunchError, match=rf"has {count} tasks here .*one task a machine.*torchrun"
    ):
        read(environment)


@pytest.mark.parametrize(
    "environment",
    [
        {"SLURM_NTASKS": "4", "SLURM_JOB_ID": "7"},  # the shell that salloc opens
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "1"},  # srun --pty bash
        # srun --ntasks=1, or a shell that salloc starts as a step, inside a job of four tasks
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1"},
        {"WORLD_SIZE": "1"},
        {"PMI_RANK": "0", "PMI_SIZE": "1"},
    ],
)
def test_one_process_alone_trains(environment):
    assert read(environment) == ALONE


def test_torchrun_under_srun_and_one_gpu_a_machine_are_no_faults():
    slurm = {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}
    assert read(WHOLE | slurm) == read(WHOLE)
    pod = {key: value for key, value in WHOLE.items() if not key.startswith("LOCAL")}
    assert read(pod, gpus=1) == Place(rank=3, world_size=4, local_rank=0, local_world_size=1)
    bare = {"RANK": "0", "WORLD_SIZE": "2"}
    assert read(bare, gpus=0, address=False).world_size == 2


def test_a_run_asks_before_it_joins(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match="RANK is not set"):
        join_world("cpu")
