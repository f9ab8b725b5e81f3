"""configs/: every file builds, has the totals of its set, and the rates that published logs show.

`python -m tests.test_configs > configs/README.md` writes the page that the last test holds to them.
"""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from configs import published
from heads import create_margin
from training.config import Config, load_config
from training.step.schedules import Schedule, create_schedule

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "configs/README.md"
NAMES = sorted(path.stem for path in (ROOT / "configs").glob("*.py") if path.stem != "published")
SETS = {
    training_set.folder: (name, training_set)
    for name, training_set in vars(published).items()
    if isinstance(training_set, published.TrainingSet)
}


def schedule_of(config: Config, images: int) -> Schedule:
    return create_schedule(
        config.optim,
        global_batch=config.data.global_batch,
        epochs=config.run.epochs,
        steps_per_epoch=images // config.data.global_batch,
    )


@cache
def named(name: str) -> Config:
    return load_config(ROOT / f"configs/{name}.py")


@pytest.mark.parametrize("name", NAMES)
def test_every_file_builds_a_run_of_its_own(name: str) -> None:
    config = named(name)
    assert Path(config.run.output).name in (name, "run")
    create_margin(config.head.loss, **config.head.loss_args)
    config.architecture  # noqa: B018 - raises for a network that is not there
    if config.data.train in SETS:
        assert config.head.num_classes == SETS[config.data.train][1].identities


# Of anxiangsir/insightface_arcface_log, as of 2026-11: images, steps in all, and "Global Step" with
# the "LearningRate" beside it.
@pytest.mark.parametrize(
    ("name", "images", "total", "step", "rate"),
    [
        ("ms1mv3_r50", 5_179_510, 101_160, 830, 0.0984),
        ("webface4m_mbf", 4_235_242, 82_700, 820, 0.0980),
        ("webface42m_r100", 42_474_557, 207_380, 1_010, 0.0292),
    ],
)
def test_rates_are_those_of_published_logs(
    name: str, images: int, total: int, step: int, rate: float
) -> None:
    schedule = schedule_of(named(name), images)
    assert schedule.total_steps == total
    assert schedule(step - 1) == pytest.approx(rate, abs=6e-5)  # four digits are printed


@pytest.mark.slow
def test_a_copy_elsewhere_builds_too(tmp_path: Path) -> None:
    """A user's copy imports what the original does, from wherever training is started."""
    copy = tmp_path / "mine.py"
    copy.write_bytes((ROOT / "configs/ms1mv3_r50.py").read_bytes())
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "train_dist.py"),
            str(copy),
            "data.train=nowhere",
            "eval.sets=[]",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2
    assert "nowhere" in done.stderr + done.stdout


def table() -> str:
    """configs/README.md."""
    head = """# Configurations

One Python file a recipe; `train_dist.py configs/NAME.py section.key=value` changes anything of it.
`configs/published.py` has what they share. Steps and rates follow from the set, the batch and the
epochs; another batch (`data.global_batch`) keeps the rate in proportion. None of the large sets has
been trained here.

| file | set | identities | images | network | loss | rate of centers | batch | epochs | steps | highest rate |
|---|---|---|---|---|---|---|---|---|---|---|
"""  # noqa: E501
    return head + "".join(map(_row, NAMES))


def _row(name: str) -> str:
    config = named(name)
    known = SETS.get(config.data.train)
    head = config.head
    share = f"{head.sample_rate:g}"
    if head.sample_rate_from:
        share += "".join(f", {rate:g} from {at}" for at, rate in head.sample_rate_from.items())
    if head.sample_groups:
        share = f"{head.sample_groups} groups"
    cells = [f"[{name}]({name}.py)"]
    if known is None:
        cells += [f"`{config.data.train}`", "", ""]
    else:
        cells += [known[0], f"{known[1].identities:,}", f"{known[1].images:,}"]
    margin = head.loss_args.get("margin")
    cells += [
        config.model.name,
        head.loss if margin is None else f"{head.loss} {margin:g}",
        share,
        f"{config.data.global_batch:,}",
        f"{config.run.epochs}",
    ]
    if known is None:
        cells += ["", f"{config.optim.lr * config.data.global_batch / 512:.4g}"]
    else:
        schedule = schedule_of(config, known[1].images)
        cells += [f"{schedule.total_steps:,}", f"{schedule.peak:.4g}"]
    return f"| {' | '.join(cells)} |\n"


def test_the_page_is_what_the_files_say() -> None:
    assert PAGE.read_text() == table(), "python -m tests.test_configs > configs/README.md"


if __name__ == "__main__":
    print(table(), end="")
