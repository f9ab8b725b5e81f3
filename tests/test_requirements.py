"""What the code imports is named by the requirements, so that a fresh machine can run it."""

import ast
import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools.checks import packages

ROOT = Path(__file__).parent.parent
ROOMS = [path for path in ROOT.iterdir() if path.is_dir() and path.name.isidentifier()]
OWN = {path.name for path in ROOMS} | {path.stem for path in ROOT.glob("*.py")}
MODULE_OF = {"nvidia-dali-cuda120": "nvidia", "pillow": "PIL", "scikit-learn": "sklearn"}
# What one that is named brings, too.
BROUGHT = {
    "matplotlib": "packaging",
    "omegaconf": "yaml",
    "rich": "markdown_it",
    "scikit-learn": "threadpoolctl",
    "tensorboard": "google",
}
# Used where they are there; what asks for them says how to get them.
OPTIONAL = {"apex", "lmdb", "mlflow", "mxnet", "pytest", "timm", "triton", "wandb"}
# In one process, as pip takes longer to start than to ask: the versions by name, as JSON.
ASK = """
import contextlib, io, json, sys
from pip._internal.cli.main import main

tags = [f"--platform=manylinux_{glibc}_x86_64" for glibc in ("2_17", "2_27", "2_28")]
target = ["--python-version", sys.argv[1], "--implementation", "cp", "--only-binary=:all:"]
once = ["--retries", "0", "--timeout", "20"]
found = {}
for name in sys.argv[2:]:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        main(["index", "versions", name, *target, *tags, *once])
    lines = [line for line in out.getvalue().splitlines() if line.startswith("Available")]
    found[name] = lines[0].partition(":")[2].replace(",", " ").split() if lines else []
print(json.dumps(found))
"""


def required(*files: str) -> set[str]:
    """The names under which Python imports what `files` name."""
    lines = "\n".join((ROOT / file).read_text() for file in files)
    names = re.findall(r"^[A-Za-z0-9][A-Za-z0-9_.-]*", lines, re.MULTILINE)
    return {MODULE_OF.get(name, name) for name in names} | {
        BROUGHT[name] for name in names if name in BROUGHT
    }


def imported(path: Path) -> set[str]:
    """The top-level names of the packages that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize(
    ("tests", "files"),
    [(False, ["requirements.txt"]), (True, ["requirements.txt", "requirements-dev.txt"])],
    ids=["rooms", "tests"],
)
def test_whatever_is_imported_is_required(tests: bool, files: list[str]) -> None:
    rooms = [room for room in ROOMS if (room.name == "tests") == tests]
    paths = [path for room in rooms for path in room.rglob("*.py")]
    paths += [] if tests else ROOT.glob("*.py")
    known = OWN | set(sys.stdlib_module_names) | OPTIONAL | required(*files)
    assert len(paths) > 100
    missing = {name: str(path) for path in paths for name in imported(path) - known}
    assert not missing


def needs(*names: str) -> set[str]:
    """All that these installed packages bring, as they say themselves."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in found:
            continue
        found.add(name)
        for requirement in map(Requirement, importlib.metadata.requires(name) or []):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return found


@pytest.mark.dali
def test_what_a_user_installs_beside_his_torch_brings_no_other_torch() -> None:
    """Nor one of the packages of CUDA that torch pins."""
    lines = packages.RANGES.read_text().splitlines()
    names = [Requirement(line).name for line in lines if line and not line.startswith("#")]
    brought = needs(*names, packages.installed_dali())
    assert {"numpy", "scipy", "protobuf"} < brought
    assert brought & {"torch", "triton", "torchvision"} == set()
    assert [name for name in brought if name.startswith(("nvidia-cu", "nvidia-nccl"))] == []


@pytest.mark.slow
@pytest.mark.parametrize("python", ["3.10", "3.14"])
def test_every_pin_is_there_for_the_oldest_and_the_newest_python(python: str) -> None:
    """As pip finds it on the index; the Pythons between have the newest one's pins."""
    pins = []
    for file in ("requirements.txt", "requirements-dev.txt"):
        for line in (ROOT / file).read_text().splitlines():
            if re.match(r"[\w.-]+==", line):
                pin = Requirement(line)
                if pin.marker is None or pin.marker.evaluate({"python_version": python}):
                    pins.append(pin)
    assert len(pins) > 15
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ASK, python, *(pin.name for pin in pins)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    found = json.loads(done.stdout)
    if not any(found.values()):
        pytest.skip(f"no package index: {done.stderr[-200:]}")
    assert [str(pin) for pin in pins if not any(map(pin.specifier.contains, found[pin.name]))] == []
