"""What the commands say of themselves."""

import sys
from importlib import import_module

import pytest


@pytest.mark.parametrize("tool", ["cache_teacher", "grow_head", "preview"])
def test_help_describes_the_command_in_a_whole_sentence(tool, monkeypatch, capsys):
    """Their docstrings go on with the command line, after a colon."""
    monkeypatch.setattr(sys, "argv", [f"{tool}.py", "-h"])
    with pytest.raises(SystemExit):
        import_module(f"tools.{tool}").main()
    _, description, _ = capsys.readouterr().out.split("\n\n", 2)
    assert description
    assert not description.endswith(":")
