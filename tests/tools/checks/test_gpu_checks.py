"""What runs on a GPU is tried, each kind of work for itself; what does not has its remedy."""

from __future__ import annotations

import os
import signal
from functools import partial

import pytest
import torch

from tests.kernel_process import run_python
from tools.checks import gpu
from tools.checks.driver import Driver


@pytest.fixture
def card(monkeypatch):
    """A T4 that a test may describe otherwise, and the CPU in its place."""
    about = ["Tesla T4", (7, 5), True]
    monkeypatch.setattr(gpu, "_describe", lambda number: tuple(about))
    monkeypatch.setattr(gpu, "_on", lambda number, work: work(torch.device("cpu")))
    return about


def fail(device: torch.device) -> None:
    raise RuntimeError("no kernel image is available for execution on the device")


def test_what_fails_hides_nothing_and_has_its_remedy(card):
    works = dict.fromkeys(gpu.WORK, lambda device: None)
    works |= {
        "float16": fail,
        "Triton": lambda device: os.kill(os.getpid(), signal.SIGKILL),
        "convolutions": fail,
    }
    ran, *faults = gpu.check_gpu(0, works)
    assert (ran.state, ran.text) == ("ok", "Tesla T4; runs float32, CUDA graphs")
    assert [(one.state, one.text.split(":")[0]) for one in faults] == [
        ("note", "float16"),
        ("fails", "convolutions"),
        ("note", "Triton"),
    ]
    assert "ended by SIGKILL" in faults[2].text
    assert "head.backend=torch" in faults[2].remedy
    assert "no kernel image" in faults[0].text


def test_bfloat16_is_tried_from_ampere_on(card):
    tried = partial(gpu.check_gpu, 0, {"bfloat16": lambda device: None})
    assert tried() == []
    card[1] = (8, 0)
    assert tried()[0].text == "Tesla T4; runs bfloat16"


def test_memory_that_others_hold_is_named(card):
    card[2] = False
    *_, taken = gpu.check_gpu(0, {"float32": lambda device: None})
    assert (taken.state, "nvidia-smi" in taken.remedy) == ("note", True)


def test_a_gpu_that_cannot_be_asked_is_a_line(monkeypatch):
    monkeypatch.setattr(gpu, "_describe", lambda number: 1 / 0)
    (found,) = gpu.check_gpu(3, gpu.WORK)
    assert (found.subject, found.state) == ("gpu 3", "fails")


@pytest.mark.parametrize(
    ("driver", "cuda", "words"),
    [
        ("12.4", None, "without CUDA"),
        ("12.4", "13.0", "the driver runs 12.4 at most"),
        ("12.4", "12.8", None),  # within one major version the driver runs newer ones
        ("13.0", "12.4", None),
    ],
)
def test_a_torch_that_reaches_no_gpu_is_explained(driver, cuda, words):
    found = gpu.does_not_fit(Driver(driver, 2), cuda)
    assert (found and words in found.text) if words else found is None


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_products_are_compared_with_exact_ones(dtype):
    gpu._multiply(torch.device("cpu"), dtype)
    with pytest.raises(AssertionError):
        gpu._compare(torch.ones(2), torch.zeros(2))


def test_every_kind_of_work_has_a_remedy():
    assert set(gpu._REMEDIES) == set(gpu.WORK)


@pytest.mark.slow
def test_the_tiny_kernel_doubles():
    code = """
import torch
import tests.interpreter
from tools.checks.triton_kernel import double
print(torch.equal(double(torch.arange(100.0)), 2 * torch.arange(100.0)))
"""
    assert run_python("-c", code, interpreted=True).strip() == "True"


@pytest.mark.gpu
def test_all_of_it_runs_on_this_machines_gpus():
    found = gpu.check_gpus()
    assert {one.state for one in found} == {"ok"}, found
