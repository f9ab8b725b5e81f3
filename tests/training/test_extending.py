"""What docs/extending.md shows works as it is printed: a margin and a recipe from a config file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from heads import MARGINS, OWN_MARGINS
from pipeline.augment import OWN_RECIPES, RECIPES
from tests.training import tiny
from tools.export_weights import export_safetensors
from training.config import ConfigError, load_config, override
from training.loop import Trainer
from training.own_parts import own_parts
from training.saving.files import read_about
from training.step.precision import choose_precision

PAGE = (Path(__file__).parents[2] / "docs" / "extending.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
OWN = {
    "margin": (0, MARGINS, "taperface", "head.loss=taperface", "TaperFace"),
    "recipe": (1, RECIPES, "gamma", "data.augment=gamma", "apply_gamma"),
}
# As large as a test may be; what the snippet is about stays.
SMALL = (
    *("run.device=cpu", "run.epochs=1", "data.global_batch=12", f"data.image_size={tiny.SIZE}"),
    *("model.name=iresnet10", "model.width=0.25", "model.embedding_dim=16"),
)


@pytest.fixture(autouse=True)
def _no_trace_in_other_tests() -> Iterator[None]:
    before = [
        (registry, dict(registry)) for registry in (MARGINS, OWN_MARGINS, RECIPES, OWN_RECIPES)
    ]
    yield
    for registry, names in before:
        registry.clear()
        registry.update(names)


def write(folder: Path, snippet: int) -> Path:
    path = folder / "mine.py"
    path.write_text(SNIPPETS[snippet], encoding="utf-8")
    return path


def test_every_snippet_of_the_page_is_tried():
    assert len(SNIPPETS) == len(OWN)


@pytest.mark.dali
@pytest.mark.parametrize("kind", OWN)
def test_a_snippet_trains_and_its_checkpoint_names_it(kind, data, world, tmp_path):
    """And what does not know it takes the run's weights all the same."""
    snippet, registry, name, setting, function = OWN[kind]
    path = write(tmp_path, snippet)
    own = [f"data.train={data}", f"run.output={tmp_path / 'run'}", *SMALL]
    config = load_config(path, own)
    precision = choose_precision(world.device, "fp32")
    trainer = Trainer(config, world, precision=precision, evaluate=lambda backbone: {})
    trainer.run()
    assert trainer.step.head.nonfinite_steps == 0
    assert read_about(trainer.last_checkpoint)["own"] == {setting: f"{function} of {path}"}

    del registry[name]
    files = export_safetensors(trainer.last_checkpoint, tmp_path / "export", license="mit")
    assert files
    other = override(
        tiny.config(data, tmp_path / "other"), [f"run.init_from={tmp_path / 'run'}", "run.epochs=1"]
    )
    Trainer(other, world, precision=precision, evaluate=lambda backbone: {})
    load_config(path, own)  # the same file makes it known again
    assert name in registry


def test_a_margin_that_is_another_with_other_defaults_is_named_by_its_own_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from dataclasses import dataclass\n"
        "from heads import ArcFace, register_margin\n"
        "from training.config import Config, DataConfig, HeadConfig\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Wide(ArcFace):\n"
        "    margin: float = 0.8\n"
        "register_margin('wide', Wide)\n"
        "config = Config(data=DataConfig(train='x.rec'), head=HeadConfig(loss='wide'))\n"
    )
    assert own_parts(load_config(path)) == {"head.loss=wide": f"Wide of {path}"}


def test_a_run_of_facestreams_own_parts_names_none(data, world, tmp_path):
    config = override(tiny.config(data, tmp_path / "run"), ["run.epochs=1"])
    precision = choose_precision(world.device, "fp32")
    trainer = Trainer(config, world, precision=precision, evaluate=lambda backbone: {})
    trainer.run()
    assert json.loads((trainer.last_checkpoint / "about.json").read_text())["own"] == {}


def test_an_unknown_margin_is_refused_with_how_to_make_it_known():
    with pytest.raises(ConfigError, match=r"register_margin\(\) made known: see docs/extending.md"):
        override(tiny.config(Path("x.rec"), Path("run")), ["head.loss=taperface"])


@pytest.mark.parametrize(
    ("snippet", "name", "taken"), [(0, "taperface", "arcface"), (1, "gamma", "flip")]
)
def test_a_name_that_exists_is_refused(snippet, name, taken, tmp_path):
    path = write(tmp_path, snippet)
    load_config(path)
    load_config(path)  # the same again
    path.write_text(path.read_text().replace(f'("{name}"', f'("{taken}"'))
    with pytest.raises(ValueError, match=f"there is a (margin|recipe) '{taken}' already"):
        load_config(path)
