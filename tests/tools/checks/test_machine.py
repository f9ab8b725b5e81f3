"""Cores, memory, /dev/shm, disks, compilers: what there is, and what to do where it is little."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from tools.checks import machine
from tools.checks.driver import Driver
from training.planning import machine as planning


@pytest.fixture
def gpus(monkeypatch) -> list[int]:
    """How many there are, which a test may change; and 16 cores."""
    count = [0]
    monkeypatch.setattr(machine, "read_driver", lambda: Driver("12.4", count[0]))
    monkeypatch.setattr(machine, "cores", lambda: 16)
    return count


@pytest.fixture
def file(monkeypatch, tmp_path) -> Path:
    return tmp_path / "file"


def room(monkeypatch, *, free: float) -> None:
    found = SimpleNamespace(f_frsize=1, f_blocks=int(500e9), f_bavail=int(free))
    monkeypatch.setattr(os, "statvfs", lambda path: found)


@pytest.mark.parametrize(
    ("quota", "count", "state", "text"),
    [
        ("max 100000", 8, "ok", "16 of"),
        ("300000 100000", 1, "ok", "3 of"),
        ("300000 100000", 2, "note", "3 of"),
        ("50000 100000", 0, "note", "1 of"),
        ("9900000 100000", 8, "ok", "16 of"),
    ],
)
def test_the_cores_of_a_container_are_those_of_its_quota(
    gpus, monkeypatch, file, quota, count, state, text
):
    gpus[0] = count
    file.write_text(f"{quota}\n")
    monkeypatch.setattr(machine, "_QUOTA", file)
    found = machine.check_cores()
    assert found.state == state
    assert found.text.startswith(text)


def test_without_a_quota_all_cores_count(gpus, monkeypatch, file):
    monkeypatch.setattr(machine, "_QUOTA", file)
    assert machine.check_cores().text.startswith("16 of")


@pytest.mark.parametrize(("limit", "state"), [("max", "ok"), (str(2 << 30), "note"), ("", "ok")])
def test_memory_is_what_a_container_leaves_of_it(monkeypatch, tmp_path, limit, state):
    (tmp_path / "meminfo").write_text("MemTotal: 99 kB\nMemAvailable:   33554432 kB\n")
    (tmp_path / "limit").write_text(limit)
    monkeypatch.setattr(planning, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(machine, "_LIMIT", tmp_path / "limit")
    assert machine.check_memory().state == state


@pytest.mark.parametrize("said", [None, "", "MemTotal: 99 kB\n"])
def test_a_container_that_says_less_of_its_memory_has_what_the_system_says(
    monkeypatch, tmp_path, file, said
):
    """As where /proc is not mounted; a run counts the same."""
    if said is not None:
        file.write_text(said)
    monkeypatch.setattr(planning, "_MEMINFO", file)
    monkeypatch.setattr(machine, "_LIMIT", tmp_path / "none")
    pages = {"SC_PAGE_SIZE": 4096, "SC_AVPHYS_PAGES": 2_000_000}
    monkeypatch.setattr(planning.os, "sysconf", pages.get)
    found = machine.check_memory()
    assert (found.state, found.text) == ("ok", "8.2 GB free")


def test_a_small_dev_shm_is_named_with_the_way_to_enlarge_it(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "_SHARED", tmp_path)
    room(monkeypatch, free=64 << 20)
    found = machine.check_shared_memory()
    assert (found.state, found.text) == ("note", "0.1 GB of 500.0 GB free")
    assert "--shm-size" in found.remedy
    monkeypatch.setattr(machine, "_SHARED", tmp_path / "none")
    assert machine.check_shared_memory().state == "fails"


@pytest.mark.parametrize(("free", "state"), [(0, "note"), (5e9, "note"), (5e10, "ok")])
def test_room_for_runs_which_may_be_elsewhere(monkeypatch, tmp_path, free, state):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "not/made/yet"))
    room(monkeypatch, free=free)
    runs, cache = machine.check_disks()
    assert (runs.subject, runs.state) == ("disk", state)
    assert str(tmp_path) in runs.text
    assert cache.state == ("note" if free < 1e9 else "ok")
    assert not (tmp_path / "not").exists()


def test_runs_may_be_elsewhere_than_in_a_folder_that_cannot_be_written(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    real = machine.tempfile.TemporaryFile

    def refuse(dir: Path):
        if dir == tmp_path:
            raise OSError(30, "read-only file system", str(dir))
        return real(dir=dir)

    monkeypatch.setattr(machine.tempfile, "TemporaryFile", refuse)
    runs, cache = machine.check_disks()
    assert runs.state == "note"
    assert "run.output" in runs.remedy
    assert cache.state != "fails"


def test_without_a_place_for_caches_nothing_runs(monkeypatch):
    def refuse(dir: Path) -> None:
        raise PermissionError(13, "denied", str(dir))

    monkeypatch.setattr(machine.tempfile, "TemporaryFile", refuse)
    _, cache = machine.check_disks()
    assert cache.state == "fails"
    assert "XDG_CACHE_HOME" in cache.remedy


def test_what_compiles(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(machine.sysconfig, "get_path", lambda name: "/nowhere")
    found = machine.check_compiler()
    assert found.state == "note"
    assert "no C++ compiler, no Python.h" in found.text


@pytest.mark.parametrize(
    ("version", "system", "state"),
    [
        ((3, 9), "Linux", "fails"),
        ((3, 10), "Linux", "ok"),
        ((3, 14), "Linux", "ok"),
        ((3, 15), "Linux", "note"),
        ((3, 12), "Windows", "fails"),
    ],
)
def test_pythons(monkeypatch, version, system, state):
    monkeypatch.setattr(machine, "sys", SimpleNamespace(version_info=version))
    monkeypatch.setattr(machine.platform, "system", lambda: system)
    assert machine.check_python().state == state
