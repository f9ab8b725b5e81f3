"""Collect what a machine without a package index lacks, in pieces that can be carried one by one:

    python launch/offline/collect.py wheelhouse          # make wheelhouse

The machine has torch and what comes with it; the rest is downloaded for its Python, platform and
CUDA, whatever this one has. wheelhouse/small holds install.sh and the wheels of a few MB,
wheelhouse/dali-0, dali-1 … the parts of DALI. There, in the project's root:

    . PATH/small/install.sh                              # without DALI
    . PATH/small/install.sh PATH                         # with the parts in PATH/dali-*
    python3 -m benchmarks.suite
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("omegaconf", "PyYAML", "rich", "markdown-it-py", "mdurl", "pygments", "simplejpeg")
PART = 56 << 20  # bytes
# What the machine has with torch: a second copy would hide it.
GIVEN = ("numpy", "typing_extensions", "packaging", "setuptools")
GLIBC = ("2_17", "2_24", "2_26", "2_27", "2_28", "2_34")  # the newest a wheel may ask for last


def pinned(name: str) -> str:
    """The requirement as requirements.txt has it, else the newest."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return next((line for line in lines if re.match(rf"{re.escape(name)}==", line)), name)


def download(folder: Path, requirements: list[str], *, python: str, arch: str, alone: bool) -> None:
    """Wheels for that machine, with what they need unless `alone`."""
    tags = [*(f"manylinux_{version}_{arch}" for version in GLIBC), f"manylinux2014_{arch}"]
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:"),
        *("--implementation", "cp", "--python-version", python, "--dest", str(folder)),
        *(f"--platform={tag}" for tag in tags),
        *(["--no-deps"] if alone else []),
    ]
    subprocess.run([*command, *requirements], check=True)
    for wheel in folder.glob("*.whl"):
        if wheel.name.lower().startswith(tuple(f"{name}-" for name in GIVEN)):
            wheel.unlink()


def split(folder: Path, wheels: Path) -> str:
    """Write folder/dali-0, dali-1 …: parts of one archive of the wheels; returns its sha256."""
    digest = hashlib.sha256()
    with tempfile.TemporaryFile() as archive:
        with tarfile.open(fileobj=archive, mode="w") as tar:
            for wheel in sorted(wheels.glob("*.whl")):
                tar.add(wheel, wheel.name)
        archive.seek(0)
        for number in range(10):
            if not (part := archive.read(PART)):
                break
            digest.update(part)
            (folder / f"dali-{number}").mkdir()
            (folder / f"dali-{number}" / f"part-{number}").write_bytes(part)
        else:
            raise ValueError(f"{wheels}: more than ten parts of {PART} bytes")
    return digest.hexdigest()


def collect(folder: Path, *, python: str, arch: str, cuda: int) -> None:
    """Fill `folder` from nothing for a machine."""
    for old in (folder / "small", *folder.glob("dali-*")):
        shutil.rmtree(old, ignore_errors=True)
    small = folder / "small"
    small.mkdir(parents=True)
    wanted = [pinned(name) for name in SMALL]
    download(small, wanted, python=python, arch=arch, alone=True)
    shutil.copy(Path(__file__).with_name("install.sh"), small)
    _, _, version = pinned("nvidia-dali-cuda120").partition("==")
    with tempfile.TemporaryDirectory() as wheels:
        dali = [f"nvidia-dali-cuda{cuda}0=={version}"]
        download(Path(wheels), dali, python=python, arch=arch, alone=False)
        (small / "dali.sha256").write_text(split(folder, Path(wheels)) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0].rstrip(":"))
    parser.add_argument("output", type=Path)
    parser.add_argument("--python", default="3.12", help="of that machine (default 3.12)")
    parser.add_argument("--arch", default="x86_64", help="its processor (default x86_64)")
    parser.add_argument("--cuda", type=int, choices=(12, 13), default=13, help="(default 13)")
    options = parser.parse_args()
    try:
        collect(options.output, python=options.python, arch=options.arch, cuda=options.cuda)
    except (ValueError, subprocess.CalledProcessError) as error:
        sys.exit(f"collect: {error}")
    for piece in sorted(options.output.iterdir()):
        size = sum(file.stat().st_size for file in piece.iterdir())
        print(f"{piece}: {size / (1 << 20):.1f} MiB")


if __name__ == "__main__":
    main()
