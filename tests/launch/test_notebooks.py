"""launch/*.ipynb: their cells are run, with a small network, on the CPU, as two sessions."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest

from tests.training import tiny

ROOT = Path(__file__).parents[2]
NOTEBOOKS = ("kaggle", "colab")


def cells(name: str) -> list[str]:
    """The sources of a notebook's code cells."""
    notebook = json.loads((ROOT / f"launch/{name}.ipynb").read_text())
    assert notebook["nbformat"] == 4
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a hosted notebook has beside Python."""
    for name, given in {
        "IPython": {},
        "IPython.display": {"Image": dict, "display": print},
        "google": {},
        "google.colab": {"drive": types.SimpleNamespace(mount=lambda path: None)},
    }.items():
        module = types.ModuleType(name)
        module.__dict__.update(given)
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_cell_parses_and_the_settings_are_what_the_others_read(name):
    first = next(cell for cell in cells(name) if cell.startswith("CODE"))
    known: dict[str, object] = {}
    exec(first, known)
    assert (ROOT / "configs" / Path(str(known["CONFIG"])).name).exists()
    for cell in cells(name):
        compile(cell, name, "exec")


# A small run, which a session's end, as the platform signals it, meets after its second step.
CONFIG = """
import os, signal, threading, time
from pathlib import Path
from tests.training.tiny import config

config = config(Path("unknown"), Path("unknown"))
metrics = os.environ.get("SESSION_ENDS_AFTER")

def end():
    while not (os.path.exists(metrics) and open(metrics).read().count("loss") > 1):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)

if metrics:
    threading.Thread(target=end, daemon=True).start()
"""


@pytest.mark.slow(seconds=15)
def test_a_session_trains_and_the_next_goes_on(tmp_path, monkeypatch, capsys):
    """The input is read-only; the second session finds the first one's run among its input."""
    stand_in(monkeypatch)
    data = tiny.write_set(tmp_path / "input/faces/deep")
    there = sorted(path.name for path in data.iterdir())
    for path in (*data.iterdir(), data):
        path.chmod(path.stat().st_mode & ~0o222)
    config = tmp_path / "config.py"
    config.write_text(CONFIG)

    def session(*, number: int) -> Path:
        output = tmp_path / f"working{number}/run"
        given = {
            "CODE": str(ROOT),
            "CONFIG": str(config),
            "DATA": str(tmp_path / "input"),
            "OUTPUT": str(output),
            "BEFORE": str(tmp_path),
            "HOURS": 11.5,
            "SETTINGS": ["run.epochs=20", "log.every=1", "run.device=cpu"],
        }
        known: dict[str, object] = {}
        for cell in cells("kaggle"):
            if cell.startswith("CODE"):
                exec(cell, known)
                assert given.keys() <= known.keys()
                known |= given
            else:
                exec(cell, known)
        return output

    monkeypatch.setenv("SESSION_ENDS_AFTER", str(tmp_path / "working1/run/metrics.jsonl"))
    with pytest.raises(SystemExit, match="143"):
        session(number=1)
    monkeypatch.delenv("SESSION_ENDS_AFTER")
    first = tmp_path / "working1/run"
    assert json.loads((first / "state.json").read_text())["finished"] is False
    second = session(number=2)
    assert json.loads((second / "state.json").read_text())["finished"] is True
    said = capsys.readouterr().out
    assert f"going on with {first}" in said
    assert sorted(path.name for path in data.iterdir()) == there
    steps = [json.loads(line)["step"] for line in (second / "metrics.jsonl").open()]
    assert steps == sorted(steps), "it went on and did not begin again"
