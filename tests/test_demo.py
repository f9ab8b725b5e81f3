"""`make demo`: what it draws is what its configuration trains on."""

from __future__ import annotations

import re
from pathlib import Path

from training.config import load_config

ROOT = Path(__file__).parents[1]


def test_the_demo_draws_the_set_that_its_configuration_expects():
    config = load_config(ROOT / "configs/demo.py")
    makefile = (ROOT / "Makefile").read_text()
    folder, size = re.search(r"make_synthetic\.py (\S+) --size (\d+)", makefile).groups()
    assert (folder, int(size)) == (config.data.train, config.data.image_size)
    assert config.eval.sets == (f"{folder}/val.bin",)
