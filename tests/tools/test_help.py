"""What the commands say of themselves."""

import re
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = sorted(path.stem for path in (ROOT / "tools").glob("[!_]*.py"))
ROOMS = ("evaluation", "heads", "models", "pipeline", "synthetic", "tools", "training")


@pytest.mark.parametrize("tool", TOOLS)
def test_every_file_among_the_tools_is_a_command_that_describes_itself(tool, monkeypatch, capsys):
    """In a whole sentence: their docstrings go on with the command line, after a colon."""
    monkeypatch.setattr(sys, "argv", [f"{tool}.py", "-h"])
    with pytest.raises(SystemExit) as ended:
        import_module(f"tools.{tool}").main()
    assert ended.value.code == 0
    usage, description, _ = capsys.readouterr().out.split("\n\n", 2)
    assert usage.startswith(f"usage: {tool}.py")
    assert description
    assert not description.endswith(":")


@pytest.mark.parametrize("tool", TOOLS)
def test_every_command_finds_our_rooms_wherever_it_is_started(tool):
    """As a script it has its own folder in the path, not the root."""
    source = (ROOT / f"tools/{tool}.py").read_text()
    ours = re.search(rf"^(from|import) ({'|'.join(ROOMS)})\b", source, re.M)
    found = source.find("\nsys.path.insert(0, str(Path(__file__).resolve().parents[1]))\n")
    assert not ours or 0 < found < ours.start()


@pytest.mark.parametrize("tool", ["cache_teacher", "preview"])
def test_overrides_are_not_called_required(tool, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{tool}.py"])
    with pytest.raises(SystemExit):
        import_module(f"tools.{tool}").main()
    *_, line = capsys.readouterr().err.splitlines()
    assert "required" in line
    assert "key=value" not in line
