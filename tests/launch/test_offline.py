"""What is carried to a machine without a package index arrives whole, or is not installed."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from launch.offline import collect

INSTALL = Path(collect.__file__).with_name("install.sh")


def wheel(folder: Path, name: str) -> None:
    """A wheel of one empty module."""
    info = f"{name}-1.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1-py3-none-any.whl", "w") as file:
        file.writestr(f"{name.replace('_', '/')}/__init__.py", "")
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", "")


@pytest.fixture
def carried(tmp_path, monkeypatch) -> Path:
    """A wheelhouse of several parts."""
    folder, wheels = tmp_path / "house", tmp_path / "wheels"
    small = folder / "small"
    small.mkdir(parents=True)
    wheels.mkdir()
    wheel(small, "omegaconf")
    wheel(wheels, "nvidia_dali")
    monkeypatch.setattr(collect, "PART", 3000)
    (small / "dali.sha256").write_text(collect.split(folder, wheels) + "\n")
    shutil.copy(INSTALL, small)
    assert len(list(folder.glob("dali-*"))) > 2
    return folder


def source(carried: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Source install.sh as a user does, and say where modules are then found."""
    script = f". {carried}/small/install.sh {' '.join(arguments)} && echo site $PYTHONPATH"
    return subprocess.run(
        ["bash", "-c", script],
        env=os.environ | {"TMPDIR": str(carried.parent)},
        capture_output=True,
        text=True,
    )


def test_the_parts_are_one_archive_and_its_digest(carried):
    parts = sorted(carried.glob("dali-*/part-*"))
    joined = b"".join(part.read_bytes() for part in parts)
    assert hashlib.sha256(joined).hexdigest() == (carried / "small/dali.sha256").read_text().strip()
    whole = carried / "whole.tar"
    whole.write_bytes(joined)
    with tarfile.open(whole) as tar:
        assert tar.getnames() == ["nvidia_dali-1-py3-none-any.whl"]


@pytest.mark.slow
def test_wheels_are_installed_with_and_without_dali(carried):
    site = carried.parent / "facestream-site"
    done = source(carried)
    assert done.stdout.startswith(f"site {site}"), done.stderr
    assert (site / "omegaconf").is_dir()
    assert not (site / "nvidia").exists()
    done = source(carried, str(carried))
    assert done.returncode == 0, done.stderr
    assert (site / "nvidia/dali").is_dir()


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_a_part_that_is_missing_or_damaged_is_refused(carried, damage):
    (carried.parent / "facestream-site/omegaconf").mkdir(parents=True)  # of an earlier time
    part = carried / "dali-1/part-1"
    if damage == "missing":
        part.unlink()
    else:
        part.write_bytes(b"x" + part.read_bytes()[1:])
    done = source(carried, str(carried))
    assert done.returncode == 1
    assert "a part of DALI is missing or damaged" in done.stdout
    assert "part-0" in done.stdout
    assert "site" not in done.stdout.splitlines()[-1].split()


def test_versions_are_those_of_the_requirements():
    assert collect.pinned("omegaconf").startswith("omegaconf==")
    assert collect.pinned("mdurl") == "mdurl"
