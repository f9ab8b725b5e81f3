"""Who takes part: devices by rank, and mistakes that end instead of hanging."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from training.distributed import join_world, leave_world

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("device", "gpus"), [("cuda", 0), ("cuda", 2), ("auto", 2)])
def test_a_rank_without_a_gpu_of_its_own_is_refused(monkeypatch, device, gpus):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(
        ValueError, match=f"run.device={device}, but local rank 2 finds {gpus} GPUs"
    ):
        join_world(device)


def test_a_world_ends_while_gloo_still_has_the_last_of_a_tensor():
    """With torch 2.6 it hung: gloo's thread needs Python's lock to free a tensor."""
    join_world("cpu")
    for _ in range(2):
        dist.all_gather([torch.empty(4_000_000)], torch.ones(4_000_000), async_op=True)
    leave_world()
    assert not dist.is_initialized()


def test_no_other_code_ends_a_group():
    """Of which this repository had three, that could hang with torch 2.6."""
    rooms = ("benchmarks", "heads", "tests", "tools", "training")
    paths = [path for room in rooms for path in sorted((ROOT / room).rglob("*.py"))]
    ending = [path for path in paths if "destroy_process" + "_group(" in path.read_text()]
    assert ending == [ROOT / "training/distributed.py"]
