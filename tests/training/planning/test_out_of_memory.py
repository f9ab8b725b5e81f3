"""Whichever memory runs out, and whenever, the end says what was predicted and what to change."""

from __future__ import annotations

import errno
import mmap
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.ranks import run_ranks
from tests.training import tiny
from training import assembly, loop
from training.config import Config, override
from training.distributed import World
from training.loop import Trainer
from training.planning import out_of_memory
from training.planning.memory import Prediction
from training.planning.out_of_memory import (
    OutOfMemoryError,
    is_shortage,
    less_memory,
    memory_explained,
    require_memory,
)
from training.step.precision import choose_precision

CPU_TEXT = (
    "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you "
    "tried to allocate 4096000000 bytes. Error code 12 (Cannot allocate memory)"
)
CUDA_TEXT = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 14.56 GiB"
)
NCCL_TEXT = (
    "NCCL error: unhandled system error. Error while creating shared memory segment "
    "/dev/shm/nccl-KL2Fng (size 9637888), error: No space left on device (28)"
)
SHORTAGES = {
    "device": torch.OutOfMemoryError(CUDA_TEXT),
    "pinned": RuntimeError("CUDA error: out of memory"),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
    "host": RuntimeError(CPU_TEXT),
    "C++": RuntimeError("std::bad_alloc"),
    "Python": MemoryError(),
    "mapped": OSError(errno.ENOMEM, "Cannot allocate memory"),
    "shared": RuntimeError(NCCL_TEXT),
    "shared file": OSError(errno.ENOSPC, "No space left on device", "/dev/shm/torch_1"),
}


def prediction(**parts: int) -> Prediction:
    names = Prediction.__dataclass_fields__
    return Prediction(**(dict.fromkeys(names, 0) | parts))


@pytest.mark.parametrize("error", SHORTAGES.values(), ids=SHORTAGES)
def test_every_kind_of_shortage_is_known(error):
    assert is_shortage(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        OSError(errno.ENOSPC, "No space left on device", "/data/run"),
        ConnectionResetError("Connection reset by peer"),
        ValueError("out of memory"),
    ],
    ids=repr,
)
def test_what_is_no_shortage_stays_what_it_is(world, data, tmp_path, error):
    assert not is_shortage(error)
    with pytest.raises(type(error)) as caught, memory_explained(tiny.config(data, tmp_path), world):
        raise error
    assert caught.value is error


@pytest.mark.parametrize(
    "take",
    [
        lambda: torch.empty(1 << 58, dtype=torch.uint8),
        lambda: np.empty(1 << 58, np.uint8),
        lambda: mmap.mmap(-1, 1 << 58),
    ],
    ids=["torch", "numpy", "map"],
)
def test_real_allocators_are_understood(take):
    with pytest.raises((RuntimeError, MemoryError, OSError)) as caught:
        take()
    assert is_shortage(caught.value)


def build(config: Config, world: World, score=lambda network: {"pairs": {"auc": 1.0}}) -> Trainer:
    precision = choose_precision(world.device, "fp32")
    return Trainer(config, world, precision=precision, sets=[tiny.scored(config, score)])


def exhaust(*_: object, **__: object) -> None:
    raise RuntimeError(CPU_TEXT)


@pytest.mark.parametrize("moment", ["building", "reserving", "a step", "verification", "saving"])
def test_at_any_moment_the_end_says_what_there_was_and_what_to_change(
    world, data, tmp_path, monkeypatch, moment
):
    config = override(tiny.config(data, tmp_path / "run"), ["run.epochs=1"])
    config = replace(config, eval=replace(config.eval, every=1))
    if moment == "building":
        monkeypatch.setattr(assembly, "create_step", exhaust)
    elif moment == "a step":
        monkeypatch.setattr(Trainer, "train_on", exhaust)
    elif moment in ("reserving", "saving"):
        name = "reserve" if moment == "reserving" else "save"
        monkeypatch.setattr(loop.Saver, name, exhaust)
    with pytest.raises(OutOfMemoryError) as caught:
        build(config, world, *([exhaust] if moment == "verification" else [])).run()
    message = str(caught.value)
    assert "asked for 4,096.0 MB" in message
    assert "MB a rank: libraries " in message, "what was predicted, by part"
    assert "that it may take" in message
    for setting in ("data.global_batch=12", "step.micro_batches=1", "head.sample_rate=1.0"):
        assert setting in message
    assert "\n" not in message


def test_shared_memory_has_a_remedy_of_its_own(world, data, tmp_path):
    with (
        pytest.raises(OutOfMemoryError, match=r"Enlarge /dev/shm"),
        memory_explained(tiny.config(data, tmp_path), world),
    ):
        raise SHORTAGES["shared"]


def test_what_makes_the_largest_part_smaller_comes_first(data, tmp_path):
    config = tiny.config(data, tmp_path)
    assert less_memory(config, prediction(activations=9)).startswith("Try more step.micro_batches")
    assert less_memory(config, prediction(centers=9)).startswith("Try more ranks")


def test_a_smaller_count_is_proposed_where_one_is_set(data, tmp_path):
    config = override(tiny.config(data, tmp_path), ["head.sample_count=30"])
    said = less_memory(config, prediction(transients=9))
    assert said.startswith("Try a smaller head.sample_count=30")
    assert "sample_rate" not in said


def test_no_rate_below_none_is_proposed(data, tmp_path):
    config = tiny.config(data, tmp_path)
    config = replace(config, head=replace(config.head, sample_rate=0.0))
    assert "head.sample_rate" not in less_memory(config, prediction(transients=9))
    assert less_memory(config, prediction(verification=9)).startswith("Try a smaller eval.batch")


def test_a_run_that_cannot_fit_is_refused_before_it_takes_anything(
    world, data, tmp_path, monkeypatch
):
    monkeypatch.setattr(out_of_memory, "available_memory", lambda device, local_world_size: 1 << 20)
    monkeypatch.setattr(assembly, "create_step", None)
    config = tiny.config(data, tmp_path / "run")
    with pytest.raises(
        OutOfMemoryError, match=r"does not fit: [\d,]+ MB a rank: .* 1 MB available"
    ):
        build(config, world)
    assert not (tmp_path / "run").exists()


def refuse(world: World, config: Config) -> str:
    """Only the second rank has too little."""
    own = prediction(activations=2 << 40 if world.rank else 1)
    try:
        require_memory(config, world, own)
    except OutOfMemoryError as error:
        return str(error)
    return ""


def test_all_ranks_refuse_what_does_not_fit_on_one(data, tmp_path):
    said = run_ranks(refuse, tiny.config(data, tmp_path), world_size=2, folder=tmp_path)
    assert all(message.startswith("does not fit") for message in said)
