"""A whole run, and every file of every room, where there is no DALI."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

RUN = """
import importlib, runpy, sys
from pathlib import Path


class NoDali:
    def find_spec(self, name, path=None, target=None):
        if name == "nvidia.dali":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, NoDali())
sys.path.insert(0, ".")
for room in ("pipeline", "models", "heads", "evaluation", "training", "tools", "benchmarks"):
    for path in sorted(Path(room).rglob("*.py")):
        importlib.import_module(".".join(path.with_suffix("").parts).removesuffix(".__init__"))
runpy.run_path("train_dist.py", run_name="__main__")
"""


@pytest.mark.slow
def test_all_rooms_are_imported_and_a_run_trains_saves_and_verifies(faces, tmp_path):
    output = tmp_path / "run"
    arguments = [
        *("configs/demo.py", f"data.train={faces}", f"eval.sets=[{faces / 'val.bin'}]"),
        *(f"run.output={output}", "run.device=cpu", "run.epochs=1", "data.global_batch=16"),
    ]
    done = subprocess.run(
        [sys.executable, "-c", RUN, *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "without DALI" in done.stdout
    assert "verification val: accuracy" in done.stdout
    assert (output / "checkpoints" / "step_000000004" / ".metadata").exists()
