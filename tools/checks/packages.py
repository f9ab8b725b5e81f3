"""What is installed, against the ranges of requirements-user.txt, and the line that mends it."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

from pipeline.dali_wheel import WHEELS, dali_wheel
from tools.checks.apart import ApartError, apart
from tools.checks.driver import Driver, read_driver
from tools.checks.finding import INSTALL, Finding, fails, note, ok

RANGES = Path(__file__).resolve().parents[2] / "requirements-user.txt"
TORCH = "torch>=2.6,<2.15"
# The index's own builds are for CUDA 12 up to 2.10, and from 2.11 on for CUDA 13.
_TORCH_OF_CUDA_12 = "torch>=2.6,<2.11"
# Training needs none of them.
USES = {
    "pyarrow": "parquet files and data.columns",
    "onnx": ".onnx files",
    "onnxruntime": ".onnx files",
}
_MODULES = {"pillow": "PIL", "scikit-learn": "sklearn"}
_IMPORT_SECONDS = 120


class Wanted(NamedTuple):
    """A package and its range, such as ">=1.26,<3"."""

    name: str
    range: str

    def __str__(self) -> str:
        return f"{self.name}{self.range}"

    def is_met(self) -> bool:
        """Whether a version of it is installed that the range has."""
        return bool(version := installed(self.name)) and self.has(version)

    def has(self, version: str) -> bool:
        """Whether the range has a version; what follows its numbers does not count."""
        found = _numbers(version)
        comparisons = re.findall(r"(>=|<)([\d.]+)", self.range)
        return all((found < _numbers(end)) == (sign == "<") for sign, end in comparisons)


def wanted() -> list[Wanted]:
    """The lines of requirements-user.txt."""
    lines = RANGES.read_text(encoding="utf-8").splitlines()
    return [as_wanted(line) for line in lines if line and not line.startswith("#")]


def as_wanted(line: str) -> Wanted:
    name, separator, rest = line.partition(">=")
    return Wanted(name, separator + rest)


def installed(name: str) -> str:
    """The version of a package; empty where there is none."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def installed_dali() -> str:
    """The wheel of DALI that is there; empty where there is none."""
    return next(filter(installed, WHEELS), "")


def check_packages() -> list[Finding]:
    """One line for each that is missing, of another version or broken; one for all others."""
    faults = [(one, _fault(one)) for one in wanted()]
    good = [f"{one.name} {installed(one.name)}" for one, fault in faults if not fault]
    found = [ok("packages", ", ".join(good))] if good else []
    for one, fault in faults:
        if fault and (use := USES.get(one.name)):
            found.append(note(one.name, f"{fault}: no {use}", INSTALL))
        elif fault:
            found.append(fails(one.name, fault, INSTALL))
    return found


def check_torch() -> Finding:
    """Whether it can be imported, and is among the versions that are tested."""
    version, range_ = installed("torch"), as_wanted(TORCH)
    if not version:
        return fails("torch", "it is not installed", INSTALL)
    import torch

    build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    found = f"{torch.__version__}, {build}"
    if range_.has(version):
        return ok("torch", found)
    if as_wanted("torch>=2.6").has(version):
        return note("torch", f"{found}: tested is {range_.range}")
    return fails("torch", f"{found}: expected {range_.range}", f"pip install '{range_}'")


def install_line() -> str:
    """The command that installs what is missing for this machine and its torch.

    torch is in it only where there is none. A wheel of DALI that is there stays: two of them are
    the same files.
    """
    driver = apart(read_driver, seconds=60)
    torch = [] if installed("torch") else [torch_for(driver)]
    dali = installed_dali() or dali_wheel(_torch_cuda() or driver.cuda)
    pip = [sys.executable, "-m", "pip", "install"]
    return shlex.join([*pip, "-r", str(RANGES), *torch, dali])


def torch_for(driver: Driver) -> str:
    """The range of torch whose builds, as the index has them, the driver runs."""
    return _TORCH_OF_CUDA_12 if driver.cuda.startswith("12.") else TORCH


def _torch_cuda() -> str | None:
    """The CUDA that torch is built for; None where it has none, or torch does not work."""
    try:
        return apart(_read_torch_cuda, seconds=_IMPORT_SECONDS)
    except ApartError:
        return None


def _read_torch_cuda() -> str | None:
    return importlib.import_module("torch.version").cuda


def _fault(one: Wanted) -> str:
    """What is wrong with a package; empty where it is in its range and can be imported."""
    version = installed(one.name)
    if not version:
        return "it is not installed"
    if not one.has(version):
        return f"found {version}, expected {one.range}"
    module = _MODULES.get(one.name, one.name)
    try:
        apart(lambda: importlib.import_module(module) and None, seconds=_IMPORT_SECONDS)
    except ApartError as error:
        return f"{version} cannot be imported ({error})"
    return ""


def _numbers(version: str) -> tuple[int, ...]:
    """(2, 1) of "2.1.0rc1": without the zeros at its end, so that 2 and 2.0 are alike."""
    parts = [int(part) for part in re.match(r"[\d.]*", version)[0].split(".") if part]
    while parts and not parts[-1]:
        parts.pop()
    return tuple(parts)
