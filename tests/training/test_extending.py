"""What docs/extending.md shows works as it is printed: parts of a config file's own."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from facestream import USER_ERROR_EXIT_CODE, UserError
from heads import MARGINS, OWN_MARGINS
from models import MODELS, OWN_MODELS, Family, register_network
from pipeline.augment import OWN_RECIPES, RECIPES
from tests.training import tiny
from tests.training.people import write_people
from tools import export_weights, grow_head
from tools.export_weights import export_safetensors
from training.config import Config, ConfigError, load_config, override
from training.distributed import World
from training.loop import Trainer
from training.own_parts import own_parts
from training.saving.files import read_about
from training.saving.reading import open_weights
from training.saving.weight_file import WeightsError
from training.step.precision import choose_precision

PAGE = (Path(__file__).parents[2] / "docs" / "extending.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
OWN = {
    "margin": (0, MARGINS, "taperface", "head.loss=taperface", "TaperFace"),
    "recipe": (1, RECIPES, "gamma", "data.augment=gamma", "apply_gamma"),
}
NETWORK = 2  # the snippet
# As large as a test may be; what the snippet is about stays.
SMALL = (
    *("run.device=cpu", "run.epochs=1", "data.global_batch=12", f"data.image_size={tiny.SIZE}"),
    "model.embedding_dim=16",
)
SMALL_NETWORK = ("model.name=iresnet10", "model.width=0.25")
REGISTRIES = (MARGINS, OWN_MARGINS, RECIPES, OWN_RECIPES, MODELS, OWN_MODELS)


@pytest.fixture(autouse=True)
def _no_trace_in_other_tests() -> Iterator[None]:
    before = [(registry, dict(registry)) for registry in REGISTRIES]
    yield
    for registry, names in before:
        registry.clear()
        registry.update(names)


def write(folder: Path, snippet: int) -> Path:
    path = folder / "mine.py"
    path.write_text(SNIPPETS[snippet], encoding="utf-8")
    return path


def train(config: Config, world: World) -> Trainer:
    precision = choose_precision(world.device, "fp32")
    trainer = Trainer(config, world, precision=precision)
    trainer.run()
    assert trainer.step.head.nonfinite_steps == 0
    return trainer


def test_every_snippet_of_the_page_is_tried():
    assert len(SNIPPETS) == len({NETWORK, *(snippet for snippet, *_ in OWN.values())})


@pytest.mark.slow
@pytest.mark.dali
@pytest.mark.parametrize("kind", OWN)
def test_a_snippet_trains_and_its_checkpoint_names_it(kind, data, world, tmp_path):
    """And what does not know it takes the run's weights all the same."""
    snippet, registry, name, setting, function = OWN[kind]
    path = write(tmp_path, snippet)
    own = [f"data.train={data}", f"run.output={tmp_path / 'run'}", *SMALL, *SMALL_NETWORK]
    trainer = train(load_config(path, own), world)
    assert read_about(trainer.last_checkpoint)["own"] == {setting: f"{function} of {path}"}

    del registry[name]
    files = export_safetensors(trainer.last_checkpoint, tmp_path / "export", license="mit")
    assert files
    other = override(
        tiny.config(data, tmp_path / "other"), [f"run.init_from={tmp_path / 'run'}", "run.epochs=1"]
    )
    train(other, world)
    load_config(path, own)  # the same file makes it known again
    assert name in registry


@pytest.mark.slow
def test_a_network_trains_and_whoever_opens_its_run_needs_the_file(
    data, world, tmp_path, monkeypatch, capsys
):
    """With --config FILE tools do what they do with any network; without, they ask for it."""
    path, run = write(tmp_path, NETWORK), tmp_path / "run"
    own = [f"data.train={data}", f"run.output={run}", *SMALL, "model.options.channels=8"]
    trainer = train(load_config(path, own), world)
    assert read_about(trainer.last_checkpoint)["own"] == {"model.name=plain": f"Plain of {path}"}

    more = write_people(tmp_path / "more", ("eve", "fay"))
    monkeypatch.setattr(grow_head, "joined_world", lambda: nullcontext(world))
    for tool, arguments in (
        (export_weights, [str(run), "-o", str(tmp_path / "export")]),
        (grow_head, [str(run), "--rec", str(more), "-o", str(tmp_path / "grown")]),
    ):
        del MODELS["plain"]
        monkeypatch.setattr("sys.argv", [tool.__name__, *arguments])
        with pytest.raises(SystemExit) as ended:
            tool.main()
        assert ended.value.code == USER_ERROR_EXIT_CODE
        assert "model.name=plain is not known here: give --config FILE" in capsys.readouterr().err
        monkeypatch.setattr("sys.argv", [tool.__name__, *arguments, "--config", str(path)])
        tool.main()
    text = (tmp_path / "export" / "README.md").read_text()
    assert "plain with channels=8, trained" in text
    assert "plain is Plain of mine.py: run that file first." in text

    again = [f"run.init_from={tmp_path / 'grown'}", f"run.output={run}2"]
    train(load_config(path, [*own, *again]), world)
    taken = open_weights(f"{run}2").network()
    assert type(taken).__name__ == "Plain"
    del MODELS["plain"]
    with pytest.raises(WeightsError, match=r"model\.name=plain is not known here"):
        open_weights(run).network()


@pytest.mark.parametrize(
    ("family", "message"),
    [
        (Family(build=lambda embedding_dim: None), "does not take that: "),
        (Family(build=lambda **sizes: None, check=lambda *, name: None), "does not take that: "),
        (Family(build=lambda **sizes: None, options=("width",)), "options={name: default}"),
        (Family(build="plain"), "expected models.Family"),
        ("plain", "expected models.Family"),
    ],
)
def test_what_is_no_network_is_refused(family, message):
    with pytest.raises(UserError, match=rf"network 'mine': .*{re.escape(message)}"):
        register_network("mine", family)
    assert "mine" not in MODELS


def test_an_unknown_network_is_refused_with_how_to_make_it_known():
    with pytest.raises(ConfigError, match=r"register_network\(\) made known: docs/extending\.md"):
        override(tiny.config(Path("x.rec"), Path("run")), ["model.name=mine"])


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
    trainer = train(override(tiny.config(data, tmp_path / "run"), ["run.epochs=1"]), world)
    assert json.loads((trainer.last_checkpoint / "about.json").read_text())["own"] == {}


def test_an_unknown_margin_is_refused_with_how_to_make_it_known():
    with pytest.raises(ConfigError, match=r"register_margin\(\) made known: see docs/extending.md"):
        override(tiny.config(Path("x.rec"), Path("run")), ["head.loss=taperface"])


@pytest.mark.parametrize(
    ("snippet", "name", "taken"),
    [(0, "taperface", "arcface"), (1, "gamma", "flip"), (2, "plain", "iresnet50")],
)
def test_a_name_that_exists_is_refused(snippet, name, taken, tmp_path):
    path = write(tmp_path, snippet)
    load_config(path)
    load_config(path)  # the same again
    path.write_text(path.read_text().replace(f'("{name}"', f'("{taken}"'))
    with pytest.raises(ValueError, match=f"there is a (margin|recipe|network) '{taken}' already"):
        load_config(path)
