"""`pip install .`: all that training needs is in it, under the rooms' own names."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOT_INSTALLED = {"benchmarks", "configs", "launch", "tests"}


def test_the_package_has_every_room_and_the_files_beside_them():
    project = (ROOT / "pyproject.toml").read_text()
    rooms = re.search(r"^include = \[(.*)\]", project, re.MULTILINE)[1]
    modules = re.search(r"^py-modules = \[(.*)\]", project, re.MULTILINE)[1]
    with_code = {path.parent.name for path in ROOT.glob("[a-z]*/*.py")}
    assert set(re.findall(r'"(\w+)\*"', rooms)) == with_code - NOT_INSTALLED
    assert set(re.findall(r'"(\w+)"', modules)) == {path.stem for path in ROOT.glob("*.py")}


def test_files_that_code_reads_beside_itself_are_in_it():
    """Whatever is no Python in a room, except its settings for the linter."""
    project = (ROOT / "pyproject.toml").read_text()
    named = re.findall(r'^"([\w.]+)" = \[(.*)\]$', project, re.MULTILINE)
    packed = {
        ROOT.joinpath(*package.split("."), name)
        for package, names in named
        for name in re.findall(r'"([\w.]+)"', names)
    }
    rooms = re.search(r"^include = \[(.*)\]", project, re.MULTILINE)[1]
    there = {
        path
        for room in re.findall(r'"(\w+)\*"', rooms)
        for path in (ROOT / room).rglob("[a-z]*.*")
        if path.suffix not in (".py", ".pyc", ".toml") and ".ruff_cache" not in path.parts
    }
    assert there == packed
