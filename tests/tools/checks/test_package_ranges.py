"""tools.checks.packages: ranges, what is wrong with what is there, the line that mends it."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest

from tools.checks import packages
from tools.checks.driver import Driver
from tools.checks.packages import TORCH, as_wanted

ROOT = Path(__file__).parents[3]
PINS = re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)


@pytest.fixture
def here(monkeypatch) -> dict[str, str]:
    """Versions by name, in place of what is installed: in their ranges, until changed."""
    versions = dict(PINS)
    monkeypatch.setattr(packages, "installed", lambda name: versions.get(name, ""))
    monkeypatch.setattr(packages, "apart", lambda work, seconds: work())
    return versions


@pytest.mark.parametrize(
    ("line", "version", "inside"),
    [
        ("numpy>=1.26,<3", "1.26.0", True),
        ("numpy>=1.26,<3", "1.25.9", False),
        ("numpy>=1.26,<3", "2.4.6", True),
        ("numpy>=1.26,<3", "3.0", False),
        ("numpy>=1.26,<3", "10.0", False),
        ("rich>=13", "13", True),
        ("rich>=13.0.0", "13", True),
        ("rich>=13", "13.0.0rc1", True),
        ("torch>=2.6,<2.15", "2.13.0+cpu", True),
        ("torch>=2.6,<2.15", "2.15.0a0+git1", False),
        ("torch>=2.6,<2.15", "2.10.1", True),
        ("rich", "1", True),
    ],
)
def test_a_range_has_its_versions(line, version, inside):
    assert as_wanted(line).has(version) is inside
    assert str(as_wanted(line)) == line


def test_the_ranges_have_what_is_tested_and_name_all_of_it_but_torch_and_dali():
    ranges = {one.name: one for one in packages.wanted()}
    pinned = {name for name, _ in PINS}
    assert set(ranges) == {name for name in pinned if name != "torch" and "dali" not in name}
    for name, version in PINS:
        if name in ranges:
            assert ranges[name].has(version), f"{name} {version} is tested, and out of its range"
    assert as_wanted(TORCH).has(dict(PINS)["torch"])


def test_the_package_asks_for_the_same_packages():
    project = (ROOT / "pyproject.toml").read_text()
    needed = re.search(r"^dependencies = \[(.*?)^\]", project, re.MULTILINE | re.DOTALL)[1]
    names = set(re.findall(r'"([\w-]+)', needed))
    ranges = {one.name for one in packages.wanted()}
    assert names == (ranges - set(packages.USES)) | {"torch"}


@pytest.mark.slow
def test_all_in_their_ranges_are_one_line(here):
    (found,) = packages.check_packages()
    assert found.state == "ok"
    assert f"numpy {here['numpy']}" in found.text


def test_each_that_is_missing_old_or_broken_is_a_line_with_the_remedy(here, monkeypatch):
    del here["rich"], here["pyarrow"]
    here["numpy"] = "1.20"
    monkeypatch.setitem(sys.modules, "simplejpeg", None)  # Python's own way to forbid an import

    def run(work, seconds):
        try:
            return work()
        except ImportError as error:
            raise packages.ApartError(str(error)) from None

    monkeypatch.setattr(packages, "apart", run)
    found = {one.subject: one for one in packages.check_packages()}
    assert found["packages"].state == "ok"
    assert {name: one.state for name, one in found.items() if name != "packages"} == {
        "rich": "fails",
        "pyarrow": "note",
        "numpy": "fails",
        "simplejpeg": "fails",
    }
    assert found["numpy"].text == "found 1.20, expected >=1.26,<3"
    assert "cannot be imported" in found["simplejpeg"].text
    assert "no parquet files" in found["pyarrow"].text
    assert all("--install" in one.remedy for name, one in found.items() if name != "packages")


@pytest.mark.parametrize(
    ("version", "state"),
    [("2.5.1", "fails"), ("2.6.0", "ok"), ("2.14.1", "ok"), ("2.15.0", "note")],
)
def test_torch_is_among_the_tested_versions_or_is_named(here, version, state):
    here["torch"] = version
    assert packages.check_torch().state == state


@pytest.mark.parametrize(
    ("torch_cuda", "driver_cuda", "wheel"),
    [
        (None, "", "cuda120"),
        ("12.8", "13.0", "cuda120"),
        ("13.0", "13.0", "cuda130"),
        (None, "13.0", "cuda130"),
        (None, "12.4", "cuda120"),
    ],
)
def test_the_wheel_of_dali_follows_torch_and_else_the_driver(
    here, monkeypatch, torch_cuda, driver_cuda, wheel
):
    monkeypatch.setattr(packages, "read_driver", lambda: Driver(driver_cuda))
    monkeypatch.setattr(importlib.import_module("torch.version"), "cuda", torch_cuda)
    del here["nvidia-dali-cuda120"]
    *_, range_, last = packages.install_line().split()
    assert last == f"nvidia-dali-{wheel}"
    assert range_.endswith("requirements-user.txt")
    here["nvidia-dali-cuda130"] = "2.4.0"
    assert packages.install_line().endswith("nvidia-dali-cuda130"), "the one that is there stays"


@pytest.mark.parametrize(
    ("driver_cuda", "newest"), [("12.4", "<2.11"), ("13.0", "<2.15"), ("", "<2.15")]
)
def test_only_where_there_is_no_torch_it_is_asked_for_as_the_driver_runs_it(
    here, monkeypatch, driver_cuda, newest
):
    monkeypatch.setattr(packages, "read_driver", lambda: Driver(driver_cuda))
    assert "torch" not in packages.install_line()
    del here["torch"]
    assert f"'torch>=2.6,{newest}'" in packages.install_line()


def test_the_line_is_one_of_a_shell_wherever_the_program_lies(here, monkeypatch):
    monkeypatch.setattr(packages, "RANGES", Path("/my faces/it's/requirements-user.txt"))
    assert "/my faces/it's/requirements-user.txt" in shlex.split(packages.install_line())
