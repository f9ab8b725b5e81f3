"""What the commands say of themselves."""

import sys
from importlib import import_module
from pathlib import Path

import pytest

TOOLS = sorted(path.stem for path in (Path(__file__).parents[2] / "tools").glob("[!_]*.py"))


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


@pytest.mark.parametrize("tool", ["cache_teacher", "preview"])
def test_overrides_are_not_called_required(tool, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{tool}.py"])
    with pytest.raises(SystemExit):
        import_module(f"tools.{tool}").main()
    *_, line = capsys.readouterr().err.splitlines()
    assert "required" in line
    assert "key=value" not in line
