"""Under a locale of ASCII alone, names beyond it are read, found and written as UTF-8."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from evaluation.pair_set import write_bin
from pipeline.named_path import as_name, as_text
from pipeline.records.index import open_index
from tests.training import tiny

ROOT = Path(__file__).parents[1]
ASCII = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
CONFIG = """# Chacun son été
from pathlib import Path
from tests.training import tiny
config = tiny.config(Path({data!r}), Path({run!r}))
"""


def test_what_is_no_utf_8_comes_back_from_both_ways():
    for text in ("été", "plain", "\udcff", "\ud800", ""):
        assert as_text(as_name(text)) == text


@pytest.mark.slow
def test_a_run_whose_paths_have_accents(tmp_path):
    """Of the file, of an override, and of one in a list; all that is saved has the letters."""
    data, run, pairs = tmp_path / "données", tmp_path / "été", tmp_path / "vérité.bin"
    tiny.write_set(data)
    index = open_index(data)
    images = [bytes(index.image(i)) for i in range(40)]
    write_bin(pairs, images, [True, False] * 10)
    config = tmp_path / "config.py"
    config.write_text(CONFIG.format(data=str(data), run="elsewhere"), encoding="utf-8")
    done = subprocess.run(
        [
            *(sys.executable, "train_dist.py", str(config), f"run.output={run}", "run.epochs=1"),
            *(f"eval.sets=[{pairs}]", "head.loss=arcface"),
        ],
        cwd=ROOT,
        env=os.environ | ASCII | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    (checkpoint,) = (run / "checkpoints").iterdir()
    saved = json.loads((checkpoint / "config.json").read_text())
    assert saved["data"]["train"] == str(data)
    assert saved["eval"]["sets"] == [str(pairs)]
    assert saved["run"]["output"] == str(run)
    assert json.loads((run / "state.json").read_text())["checkpoint"] == str(checkpoint)
    log = (run / "run.log").read_text(encoding="utf-8")
    assert f"run.output={run}" in log
    assert "udcc3" not in log + "".join(
        path.read_text() for path in run.rglob("*.json*") if path.is_file()
    )
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    assert {"vérité"} == {name for line in lines for name in line.get("verification", ())}
