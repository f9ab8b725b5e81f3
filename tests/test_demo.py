"""`make demo`: what it draws is what its configuration trains on."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from training.config import load_config

ROOT = Path(__file__).parents[1]


def test_the_demo_draws_the_set_that_its_configuration_expects():
    config = load_config(ROOT / "configs/demo.py")
    makefile = (ROOT / "Makefile").read_text()
    folder, size = re.search(r"make_synthetic\.py (\S+) --size (\d+)", makefile).groups()
    assert (folder, int(size)) == (config.data.train, config.data.image_size)
    assert config.eval.sets == (f"{folder}/val.bin",)


@pytest.mark.parametrize(("finished", "kept"), [("true", False), ("false", True), (None, True)])
def test_a_demo_that_was_stopped_goes_on_and_a_finished_one_begins_again(tmp_path, finished, kept):
    """None: stopped before it had its state."""
    makefile = (ROOT / "Makefile").read_text()
    (line,) = re.findall(r"^\t@(.*rm -rf runs/demo)$", makefile, re.MULTILINE)
    run = tmp_path / "runs/demo"
    run.mkdir(parents=True)
    if finished:
        (run / "state.json").write_text(f'{{\n  "finished": {finished}\n}}')
    subprocess.run(["sh", "-c", line], cwd=tmp_path, check=True)
    assert run.exists() is kept
    subprocess.run(["sh", "-c", line], cwd=tmp_path, check=True)
