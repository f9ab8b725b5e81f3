"""docs/own_loop.md: every example runs as it is printed, in a folder that has nothing of ours."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/own_loop.md").read_text(encoding="utf-8")
EXAMPLES = dict(
    re.findall(r"^## ([^\n]+)\n(?:(?!^## ).)*?^```python\n(.*?)^```$", PAGE, re.M | re.S)
)
SAYS = {  # what each prints, at least
    "The head": r"(\d+\.\d+\n){3}",
    "The head on several ranks": r"(\d+\.\d+\n){3}",
    "The stream": r"(torch.Size\(\[32, 3, 64, 64\]\) \[\d+, .*\n){3}",
    "The records": r"64 images of 8 people\n",
    "The figures": r"0\.\d+ ± 0\.\d+\n(\S+ .*\n)+",
}
# Put in front of an example: what it must do without cannot be imported. Of nvidia only DALI: a
# part of triton 3.2 has that name, too.
WITHOUT = "import sys\nfor name in {names}:\n    sys.modules[name] = None\n"


def run(example: str, folder: Path, *, ranks: int = 0, without: tuple[str, ...] = ()) -> str:
    """The lines that an example of the page prints."""
    code = EXAMPLES[example].replace("SIZE = 112", "SIZE = 64")
    script = folder / "mine.py"
    script.write_text(WITHOUT.format(names=without) + code, encoding="utf-8")
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    command = [sys.executable, *(torchrun if ranks else ()), script.name]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def folder(faces: Path, tmp_path: Path) -> Path:
    """As a user's: a training set and a set of pairs, and no other file."""
    for name in ("train.rec", "val.bin"):
        (tmp_path / name).symlink_to(faces / name)
    return tmp_path


def test_every_example_is_tried():
    assert EXAMPLES.keys() == SAYS.keys()
    assert PAGE.count("```python") == len(EXAMPLES)


@pytest.mark.slow
@pytest.mark.parametrize("example", ["The head", "The stream", "The figures"])
def test_an_example_runs_in_a_folder_of_its_own(example, folder):
    """And none of them needs the trainer."""
    printed = run(example, folder, without=("training", "tools", "nvidia.dali"))
    assert re.fullmatch(SAYS[example], printed), printed


@pytest.mark.slow
def test_the_head_runs_under_torchrun(folder):
    printed = run("The head on several ranks", folder, ranks=2)
    assert re.fullmatch(SAYS["The head on several ranks"], printed), printed


def test_records_are_read_without_torch_and_dali(folder):
    printed = run("The records", folder, without=("torch", "nvidia.dali", "training"))
    assert re.fullmatch(SAYS["The records"], printed), printed
    assert (folder / "first.jpg").read_bytes()[:2] == b"\xff\xd8"
