"""NVIDIA's driver is asked itself, and what it answers is understood."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import pytest

from tools.checks import driver
from tools.checks.driver import Driver, check_driver, read_driver


@pytest.fixture
def answers(monkeypatch) -> SimpleNamespace:
    """A driver for CUDA 12.4 with two GPUs, in place of the machine's."""
    said = SimpleNamespace(version=12040, gpus=2, start=0)

    def put(reference, value: object) -> int:
        reference._obj.value = value
        return 0

    library = SimpleNamespace(
        cuDriverGetVersion=lambda found: put(found, said.version),
        cuInit=lambda flags: said.start,
        cuDeviceGetCount=lambda found: put(found, said.gpus),
        cuGetErrorName=lambda error, found: put(found, f"CUDA_ERROR_{error}".encode()),
    )
    monkeypatch.setattr(driver, "ctypes", SimpleNamespace(**vars(ctypes) | {"CDLL": None}))
    monkeypatch.setattr(driver.ctypes, "CDLL", lambda name: library)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return said


def test_its_version_and_gpus(answers):
    assert read_driver() == Driver("12.4", 2)
    answers.version = 13010
    assert read_driver().cuda == "13.1"
    assert check_driver().state == "ok"


def test_one_that_does_not_start_says_why(answers):
    answers.start = 999
    assert read_driver() == Driver("12.4", 0, "CUDA_ERROR_999")
    found = check_driver()
    assert found.state == "fails"
    assert "CUDA_ERROR_999" in found.text


def test_gpus_that_a_variable_hides_are_no_fault(answers, monkeypatch):
    answers.gpus = 0
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = check_driver()
    assert found.state == "note"
    assert "CUDA_VISIBLE_DEVICES=''" in found.text
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert check_driver().state == "fails"


def test_none_is_a_machine_without_gpus(monkeypatch):
    monkeypatch.setattr(driver, "_LIBRARY", "libno_such_library.so.1")
    assert read_driver() == Driver()
    assert check_driver().state == "note"
