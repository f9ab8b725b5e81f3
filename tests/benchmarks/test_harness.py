"""Turns are taken in order, and every result says what it was measured on."""

from __future__ import annotations

import json

import torch

from benchmarks import harness

CPUINFO = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 1
model name\t: AMD EPYC 7763 64-Core Processor
flags\t\t: fpu sse2 avx2 fma bmi2

processor\t: 1
model name\t: another
"""


def test_a_result_names_the_cpu_and_what_of_it_was_used(monkeypatch, tmp_path):
    (tmp_path / "cpuinfo").write_text(CPUINFO)
    monkeypatch.setattr(harness, "CPUINFO", tmp_path / "cpuinfo")
    for name in harness.HOLDING_BACK:
        monkeypatch.delenv(name, raising=False)
    about = harness.about_cpu()
    assert about["cpu"] == {
        "model name": "AMD EPYC 7763 64-Core Processor",
        "vendor_id": "AuthenticAMD",
        "cpu family": "25",
        "model": "1",
    }
    assert about["instruction_sets"] == ["avx2", "fma"]
    assert about["torch_uses"] == torch.backends.cpu.get_cpu_capability()
    assert "held_to" not in about
    json.dumps(about)


def test_a_cpu_that_is_held_back_is_said_to_be(monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert harness.about_cpu()["held_to"]["ONEDNN_MAX_CPU_ISA"] == "AVX2"


def test_without_cpuinfo_the_cpu_stays_unnamed(monkeypatch, tmp_path):
    monkeypatch.setattr(harness, "CPUINFO", tmp_path / "missing")
    about = harness.about_cpu()
    assert (about["cpu"], about["instruction_sets"]) == ({}, [])


def test_ways_take_turns_and_the_rounds_to_warm_up_do_not_count():
    done = []
    ways = {"a": lambda: done.append("a"), "b": lambda: done.append("b")}
    seconds = harness.take_turns(ways, rounds=3, warm_up=2)
    assert "".join(done) == "ab" * 5
    assert {name: len(taken) for name, taken in seconds.items()} == {"a": 3, "b": 3}
    assert harness.medians({"a": [3.0, 1.0, 2.0]}) == {"a": 2.0}


def test_results_of_a_cpu_that_is_held_back_lie_beside_the_others(monkeypatch, tmp_path):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    about = {"date": "2026-01-02", "device": "cpu", "torch_uses": "AVX2"}
    whole = harness.save("loader", about, images_per_s=1)
    held = harness.save("loader", about | {"held_to": {"ATEN_CPU_CAPABILITY": "avx2"}})
    card = harness.save("loader", about | {"device": "NVIDIA H100 80GB"})
    assert whole.name == "loader_cpu_2026-01-02.json"
    assert held.name == "loader_cpu_avx2_2026-01-02.json"
    assert card.name == "loader_nvidia-h100-80gb_2026-01-02.json"
    assert json.loads(whole.read_text()) == about | {"images_per_s": 1}


def test_a_result_names_the_commit_and_the_packages():
    about = harness.about_cpu()
    assert "numpy" in about["versions"]
    assert isinstance(about["commit"], str)
