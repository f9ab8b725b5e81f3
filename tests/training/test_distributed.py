"""Who takes part: devices by rank, and mistakes that end instead of hanging."""

import pytest
import torch

from training.distributed import join_world


@pytest.mark.parametrize(("device", "gpus"), [("cuda", 0), ("cuda", 2), ("auto", 2)])
def test_a_rank_without_a_gpu_of_its_own_is_refused(monkeypatch, device, gpus):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(
        ValueError, match=f"run.device={device}, but local rank 2 finds {gpus} GPUs"
    ):
        join_world(device)
