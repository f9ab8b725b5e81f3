"""What the code imports is named by the requirements, so that a fresh machine can run it."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = [path for path in ROOT.iterdir() if path.is_dir() and path.name.isidentifier()]
OWN = {path.name for path in ROOMS} | {path.stem for path in ROOT.glob("*.py")}
MODULE_OF = {"nvidia-dali-cuda120": "nvidia", "pillow": "PIL", "scikit-learn": "sklearn"}
# What one that is named brings, too.
BROUGHT = {
    "omegaconf": "yaml",
    "rich": "markdown_it",
    "scikit-learn": "threadpoolctl",
    "tensorboard": "google",
}
# Used where they are there; what asks for them says how to get them.
OPTIONAL = {"apex", "mlflow", "mxnet", "pytest", "timm", "triton", "wandb"}


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
