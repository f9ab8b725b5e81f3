"""tools.checks.ranks and decoding: what they say where ranks do not meet or an image is wrong."""

from __future__ import annotations

import numpy as np
import pytest

from tools.checks import decoding, packages, ranks
from tools.checks.driver import Driver


@pytest.mark.parametrize(("gpus", "backend", "world"), [(0, "gloo", 2), (4, "nccl", 4)])
def test_a_rank_for_each_gpu_and_the_first_that_fails_is_named(monkeypatch, gpus, backend, world):
    def sum_of_some(backend: str, rank: int, world: int, store: str) -> str:
        if rank == 1:
            raise RuntimeError("unhandled system error")
        return backend

    monkeypatch.setattr(ranks, "read_driver", lambda: Driver("12.4", gpus))
    monkeypatch.setattr(ranks, "_sum", sum_of_some)
    found = ranks.check_ranks()
    assert found.state == "fails"
    assert found.text == f"{backend}, rank 1 of {world}: RuntimeError: unhandled system error"
    monkeypatch.setattr(ranks, "_sum", lambda backend, *_: backend)
    assert ranks.check_ranks().text == f"{backend} adds up over {world} ranks"


def test_ranks_without_torch_are_asked_to_install_it(monkeypatch):
    def sum_without_torch(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'torch'")

    monkeypatch.setattr(ranks, "_sum", sum_without_torch)
    assert "--install" in ranks.check_ranks().remedy


def test_the_image_is_decoded_and_a_wrong_one_is_refused(monkeypatch):
    assert decoding.check_jpeg().state == "ok"
    wrong = np.zeros((16, 16, 3), np.uint8)
    monkeypatch.setattr("simplejpeg.decode_jpeg", lambda data, colorspace: wrong)
    with pytest.raises(ValueError, match="expected"):
        decoding.check_jpeg()


def test_without_dali_there_is_a_note_and_no_fault(monkeypatch):
    monkeypatch.setattr(packages, "installed", lambda name: "")
    (found,) = decoding.check_dali()
    assert found.state == "note"
    assert "flip" in found.text


@pytest.mark.dali
def test_dali_that_fails_on_the_gpu_is_a_note_and_on_the_cpu_a_fault(monkeypatch):
    def decode(decoder: str, gpu: int | None) -> None:
        raise RuntimeError("nvjpeg")

    monkeypatch.setattr(decoding, "read_driver", lambda: Driver("12.4", 1))
    monkeypatch.setattr(decoding, "_decode", decode)
    on_cpu, on_gpu = decoding.check_dali()
    assert (on_cpu.state, on_gpu.state) == ("fails", "note")
    assert "data.decode=hybrid" in on_gpu.remedy
