"""tools/health.py says what is wrong with a run's folder, and by its exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from facestream import VERSION
from tests.commands import call
from tools.health import main
from training.config import Config, DataConfig, RunConfig
from training.health.facts import Facts
from training.saving import files

CONFIG = Config(run=RunConfig(epochs=10), data=DataConfig(train="a.rec", global_batch=64))
BLIND = Facts.of(CONFIG, classes=1_000, steps_per_epoch=100).blind_loss


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of one that stopped after 500 steps, without its metrics."""
    checkpoint = tmp_path / "run" / "checkpoints" / "step_000000500"
    checkpoint.mkdir(parents=True)
    about = {"facts": {"number of classes": 1_000}, "facestream": VERSION, "step": 500}
    documents = {"config.json": CONFIG.as_dict(), "about.json": about}
    files.complete(checkpoint, documents=documents, digests={})
    return tmp_path / "run"


def write(run: Path, losses: list[float], norms: list[float]) -> None:
    lines = [
        {"step": 50 * i, "epoch": i / 2, "loss": loss, "gradient_norm": norm, "lr": 0.1}
        for i, (loss, norm) in enumerate(zip(losses, norms), start=1)
    ]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def test_a_run_that_learns_is_healthy(run: Path):
    write(run, [BLIND - 2 * i for i in range(10)], [20.0, *[2.0] * 9])
    done = call(main, run)
    assert done.returncode == 0
    assert "step 500, epoch 5.00" in done.stdout
    assert f"a network that knows nobody has {BLIND:.4g}" in done.stdout
    assert "healthy    nothing wrong is seen" in done.stdout
    assert "expected   no run with these settings is known" in done.stdout


def test_one_that_does_not_is_ill_and_the_command_says_so_by_its_exit_code(run: Path):
    write(run, [BLIND] * 10, [20.0, *[2.0] * 9])
    done = call(main, run)
    assert done.returncode == 3
    assert "unhealthy  labels do not fit the images" in done.stdout


def test_one_that_has_just_begun_is_neither(run: Path):
    write(run, [BLIND] * 2, [20.0, 2.0])
    done = call(main, run)
    assert done.returncode == 0
    assert "early      nothing wrong is seen so far" in done.stdout


def test_what_is_no_run_or_has_nothing_yet_is_said(run: Path, tmp_path: Path):
    nothing = call(main, tmp_path)
    assert nothing.returncode == 2
    assert "no metrics.jsonl" in nothing.stderr
    (run / "metrics.jsonl").write_text('{"step": 0, "epoch": 0.0, "verification": {}}\n')
    assert "no loss yet" in call(main, run).stderr
    write(tmp_path, [9.0], [1.0])
    assert "has no checkpoint yet" in call(main, tmp_path).stderr
