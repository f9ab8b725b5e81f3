"""What every result says of the CPU that it was measured on."""

from __future__ import annotations

import json

import torch

from benchmarks import setting

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
    monkeypatch.setattr(setting, "CPUINFO", tmp_path / "cpuinfo")
    for name in setting.HOLDING_BACK:
        monkeypatch.delenv(name, raising=False)
    about = setting.about_cpu()
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
    assert setting.about_cpu()["held_to"]["ONEDNN_MAX_CPU_ISA"] == "AVX2"


def test_without_cpuinfo_the_cpu_stays_unnamed(monkeypatch, tmp_path):
    monkeypatch.setattr(setting, "CPUINFO", tmp_path / "missing")
    about = setting.about_cpu()
    assert (about["cpu"], about["instruction_sets"]) == ({}, [])
