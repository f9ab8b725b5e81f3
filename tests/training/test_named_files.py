"""Every file that a setting names fails with setting, path and remedy, whatever is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest

from evaluation.pair_set import PairSetError, read_bin
from tests.pipeline.test_named_path import REASONS, forbid, spoil
from tests.training import tiny
from training import named_files
from training.config import Config, ConfigError, DataConfig, load_config, override
from training.data import open_training_data
from training.distill.teacher import load_teacher
from training.distributed import World
from training.named_files import check_named_files
from training.planning.row_places import place_folder
from training.saving.resume import choose_checkpoint
from training.staging import use_copies
from training.step.precision import choose_precision
from training.weights.warm_start import open_init_from

# Settings that are text and name no file that is read.
NO_FILES = {
    "run.output",  # is written
    "run.device",
    "data.labels",
    "data.order",
    "data.augment",
    "data.decode",
    "model.name",
    "model.lora_layers",
    "head.loss",
    "head.place",
    "head.groups_scope",
    "head.backend",
    "optim.name",
    "optim.backend",
    "optim.schedule",
    "optim.freeze",
    "optim.rates",
    "distill.model",
    "distill.input",
    "distill.loss",
    "eval.every",  # names sets
    "log.also",
    "step.precision",
    "step.cuda_graph",
}


def fail_in_its_room(config: Config, world: World, setting: str) -> None:
    """Call what reads the file of a setting in a run."""
    precision = choose_precision(world.device, "fp32")
    if setting == "run.resume":
        choose_checkpoint(Path(config.run.output), config, facts={})
    elif setting == "run.init_from":
        open_init_from(config)
    elif setting == "distill.teacher":
        load_teacher(config, device=world.device, precision=precision)
    elif setting == "data.stage":
        use_copies(config, world, open_training_data(config, world).records)
    elif setting == "head.place_path":
        place_folder(config)
    elif setting == "eval.sets":
        check_named_files(config, setting)
    else:
        open_training_data(config, world)


@pytest.mark.parametrize("setting", named_files._SETTINGS)
@pytest.mark.parametrize("how", [*REASONS, "the other kind"])
def test_it_fails_with_setting_path_and_reason(world, data, tmp_path, monkeypatch, setting, how):
    expected = named_files._SETTINGS[setting]
    if how == "the other kind" and expected.file and expected.folder:
        pytest.skip("either is right")
    folder = tmp_path / "spoiled"
    folder.mkdir()
    path = spoil(folder, how, file=expected.file)
    value = (path,) if setting == "eval.sets" else path
    config = with_setting(tiny.config(data, tmp_path / "run"), setting, value)
    if how == "forbidden":
        forbid(monkeypatch, path)
    with pytest.raises(ValueError, match=r"[Ee]xpected|[Cc]hoose") as caught:
        fail_in_its_room(config, world, setting)
    assert type(caught.value) is not ValueError, "one of ours"
    message = str(caught.value)
    assert message.lstrip("'\"").startswith(f"{setting}={path}".replace("\0", r"\x00"))
    assert REASONS.get(how, "is a fold" if expected.file else "is a file") in message


def with_setting(config: Config, setting: str, value: object) -> Config:
    """A NUL byte is more than a command line can hold, but not more than a file can."""
    section, _, key = setting.partition(".")
    return replace(config, **{section: replace(getattr(config, section), **{key: value})})


def test_nothing_named_is_nothing_looked_for(data, tmp_path):
    config = tiny.config(data, tmp_path / "run")
    check_named_files(config, *named_files._SETTINGS)
    check_named_files(override(config, ["run.resume=never"]), "run.resume")


def test_an_empty_name_among_others_is_refused(data, tmp_path):
    config = with_setting(tiny.config(data, tmp_path / "run"), "eval.sets", ("",))
    with pytest.raises(ValueError, match=r"^eval\.sets= does not exist"):
        check_named_files(config, "eval.sets")


def test_a_folder_without_a_set_says_what_could_be_in_it(world, tmp_path):
    (tmp_path / "empty").mkdir()
    config = tiny.config(tmp_path / "empty", tmp_path / "run")
    said = r"data\.train=.*empty holds no train\.rec, and no folders"
    with pytest.raises(ValueError, match=said):
        open_training_data(config, world)


def test_every_setting_that_is_text_either_names_a_file_or_is_known_not_to():
    """A new setting that names a file must be looked at like the others."""
    config = Config(data=tiny.config(Path("data"), Path("run")).data)
    texts = {
        f"{section.name}.{key.name}"
        for section in fields(config)
        for key in fields(getattr(config, section.name))
        if "str" in str(key.type) or "Literal" in str(key.type) or str(key.type) == "Any"
    }
    assert texts - {"head.loss_args", "head.extra_terms", "model.options"} == NO_FILES | set(
        named_files._SETTINGS
    )


@pytest.mark.parametrize(
    ("read", "error"), [(load_config, ConfigError), (read_bin, PairSetError)], ids=["config", "bin"]
)
@pytest.mark.parametrize("how", [*REASONS, "the other kind"])
def test_so_does_a_file_that_no_setting_names(
    tmp_path, monkeypatch, read: Callable, error: type[ValueError], how: str
):
    path = spoil(tmp_path, how)
    if how == "forbidden":
        forbid(monkeypatch, path)
    with pytest.raises(error) as caught:
        read(path)
    assert REASONS.get(how, "is a folder") in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_set_without_columns_is_named_by_an_empty_text(tmp_path):
    """As docs/data.md says: there is one entry for each set, and nothing for one without."""
    (tmp_path / "b.csv").write_text("weight\n")
    config = Config(data=DataConfig(train="a.rec", columns=("", str(tmp_path / "b.csv"))))
    check_named_files(config, "data.columns")
