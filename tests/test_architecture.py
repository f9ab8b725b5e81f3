"""docs/architecture.md, its picture and docs/files.md are of the tree as it is.

`python -m tests.test_architecture > docs/files.md` writes the page that the last test holds.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
ROOMS = ("pipeline", "models", "heads", "synthetic", "evaluation", "training", "tools")
BELOW = {  # what the page's table says
    "pipeline": set(),
    "models": set(),
    "heads": set(),
    "synthetic": set(),
    "evaluation": {"pipeline", "models"},
    "training": {"pipeline", "models", "heads", "synthetic", "evaluation"},
    "tools": {"pipeline", "models", "heads", "synthetic", "evaluation", "training"},
}


def files(room: str) -> list[Path]:
    """By folder, a folder's own files before those of the folders in it."""
    return sorted((ROOT / room).rglob("*.py"), key=lambda path: (path.parent, path.name))


def imported(path: Path) -> Iterator[str]:
    """The rooms that a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0]


def test_rooms_import_what_the_page_says():
    for room, below in BELOW.items():
        assert f"`{room}/`" in PAGE
        for path in files(room):
            others = set(imported(path)) & {*ROOMS, "benchmarks", "train_dist"} - {room}
            assert others <= below, f"{path}: {others - below}"


def test_what_the_picture_names_is_there():
    """By the path in its room; heads/ and training/ are written out where rooms share a lane."""
    picture = (ROOT / "docs/architecture.svg").read_text(encoding="utf-8")
    named = re.findall(r">([\w/]+(?:\.py|/))<", picture)
    assert len(named) > 50
    tree = [path.as_posix() for room in ROOMS for path in (ROOT / room).rglob("*")]
    for name in named:
        ends = "/" + name.rstrip("/")
        assert any(path.endswith(ends) for path in tree) or (ROOT / name).is_dir(), name


def summary(path: Path) -> str:
    """The first sentence of a file's docstring, or its title."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert text, f"{path}: say in a docstring what it is for"
    return text.split("\n\n")[0].replace("\n", " ").replace("|", "\\|")


def page() -> str:
    """docs/files.md."""
    lines = [
        "# Every file, and what it is for",
        "",
        "The first line of each file, by folder. Where to begin:",
        "[architecture.md](architecture.md).",
        "",
    ]
    for room in ROOMS:
        lines += [f"## {room}/", ""]
        for folder, paths in groupby(files(room), key=lambda path: path.parent):
            there = [path for path in paths if path.name != "__init__.py"]
            about = summary(folder / "__init__.py") if (folder / "__init__.py").exists() else ""
            name = folder.relative_to(ROOT).as_posix()
            lines += [f"**{name}/** {about}".rstrip(), "", "| file | |", "|---|---|"]
            lines += [
                f"| [{path.name}](../{path.relative_to(ROOT).as_posix()}) | {summary(path)} |"
                for path in there
            ]
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def test_the_list_of_files_is_that_of_the_tree():
    written = (ROOT / "docs/files.md").read_text(encoding="utf-8")
    assert written == page(), "python -m tests.test_architecture > docs/files.md"


if __name__ == "__main__":
    print(page(), end="")
