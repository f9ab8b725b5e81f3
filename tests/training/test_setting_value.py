"""What is typed on a command line is what a setting gets."""

import json
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from training import named_files
from training.config import (
    PATH_SETTINGS,
    Config,
    ConfigError,
    DataConfig,
    load_config,
    override,
)

BASE = Config(data=DataConfig(train="x.rec"))
# What a list in brackets can hold in quotes: YAML allows no control characters.
PRINTED = st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), min_size=1)


@settings(max_examples=25)
@given(st.text(min_size=1).filter(lambda text: not text.startswith("~")))
@example("20241125_01")
@example("0123")
@example("runs/a #2")
@example("no")
@example("null")
@example("12e4567")
@example("12:30")
@example("1.10")
@example("${oc.env:HOME}")
@example("???")
@example("[a, b]")
def test_a_text_comes_back_as_it_was_given(text):
    config = override(BASE, [f"run.output={text}", f"run.init_from={text}"])
    assert config.run.output == config.run.init_from == text


@settings(max_examples=25)
@given(st.lists(PRINTED.filter(lambda text: not text.startswith("~")), min_size=1, unique=True))
def test_texts_of_a_list_come_back_as_they_were_given(texts):
    given_as = json.dumps(texts, ensure_ascii=False)
    config = override(BASE, [f"data.train={given_as}", f"eval.sets={given_as}"])
    assert config.data.files == config.eval.sets == tuple(texts)


def test_elements_of_a_list_need_no_quotes_to_stay_texts():
    config = override(BASE, ["eval.sets=[0123, no, 1.10, 12:30, 20241125_01, a#2]"])
    assert config.eval.sets == ("0123", "no", "1.10", "12:30", "20241125_01", "a#2")


@pytest.mark.parametrize(
    ("given_as", "meant"),
    [
        ("flip", ("flip",)),
        ("adaface:0.5", ("adaface:0.5",)),
        ("[]", ()),
        ("", ()),
        ("1.10", ("1.10",)),
    ],
)
def test_a_single_text_is_a_list_of_one(given_as, meant):
    assert override(BASE, [f"data.augment={given_as}"]).data.augment == meant


def test_the_printed_lines_give_the_same_configuration():
    odd = ["run.output=no", "data.train=[1.10,0123]", "eval.sets=12:30", "step.cuda_graph=off"]
    config = override(BASE, [*odd, "optim.schedule=step", "optim.decay_epochs=[3,7]"])
    assert override(BASE, config.lines()) == config
    assert "run.output=no" in config.lines()


@pytest.mark.parametrize(
    ("override_", "complaint"),
    [
        ("run.epochs=12:30:45", "base 60"),
        ("optim.lr=1:30.5", "base 60"),
        ("optim.decay_epochs=[1:30]", "base 60"),
        ("head.sample_rate_from={1:30}", "space after the colon"),
        ("head.loss_args={margin: 12:30:45}", "base 60"),
        ("head.loss_args.margin=12:30:45", "base 60"),
        ("head.loss_args={1:30:45: 0.5}", "base 60"),
        ("head.extra_terms=classifiability", r"expected names and values, as in \{name: value\}"),
        ("head.extra_terms=[classifiability]", "expected names and values"),
        ("run.epochs=012", "base 8"),
        ("optim.decay_epochs=[1, 010]", "base 8"),
        (f"run.seed={'9' * 5000}", "4300"),
        ("data.augment=[flip", r"data\.augment='\[flip': expected \[one, other\]"),
        ("data.augment=[flip, [light]]", "a list of texts"),
        ("data.train=[a.rec, b: c]", "a list of texts"),
        ("optim.freeze=[*.bias]", r"begins with \* stands in quotes"),
        ("optim.rates={*.bias: 2}", r"begins with \* stands in quotes"),
        ("run.output.x=a", r"run\.output\.x"),
    ],
)
def test_what_is_no_value_is_refused(override_, complaint):
    with pytest.raises(ConfigError, match=complaint):
        override(BASE, [override_])


PIECES = (
    *("[", "]", "{", "}", ":", ": ", ", ", " ", "- ", "#", "\n", "\0", "'", '"', "&a ", "*a", "? "),
    *(
        "1",
        "-1",
        "0.5",
        "012",
        "12:30:45",
        "1e999",
        ".nan",
        "9" * 30,
        "0x1f",
        "1_000",
        "2020-01-01",
    ),
    *("null", "true", "no", "~", "${", "${oc.env:HOME}", "???", "!!int ", "!!python/name:os ", "é"),
    *("margin", "scale", "flip", "auto", "arcface", "step"),
)
KEYS = [line.partition("=")[0] for line in BASE.lines()]
INNER = ["", "", "", ".margin", ".0", ".", ".a.b", ".é"]


@pytest.mark.slow
@settings(max_examples=150, derandomize=True)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(KEYS),
            st.sampled_from(INNER),
            st.one_of(st.text(max_size=8), st.lists(st.sampled_from(PIECES)).map("".join)),
        ),
        min_size=1,
        max_size=2,
    )
)
def test_any_text_gives_a_configuration_or_an_error_of_its_own(given_as):
    items = [f"{key}{inner}={text}" for key, inner, text in given_as]
    try:
        config = override(BASE, items)
    except ConfigError:
        return
    assert override(BASE, config.lines()) == config


def test_a_leading_tilde_is_the_home_folder_in_every_path(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert set(PATH_SETTINGS) == {"run.output", *named_files._SETTINGS}
    config = override(BASE, [f"{setting}=~/x" for setting in PATH_SETTINGS])
    for setting in PATH_SETTINGS:
        section, name = setting.split(".")
        value = getattr(getattr(config, section), name)
        assert (value if isinstance(value, str) else value[0]) == f"{tmp_path}/x", setting
    assert override(BASE, ["data.train=[~/a,b~]"]).data.files == (f"{tmp_path}/a", "b~")


def test_a_tilde_of_a_file_is_expanded_too(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert override(Config(data=DataConfig(train="~/x.rec")), []).data.train == str(
        Path(tmp_path, "x.rec")
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "key", ["data.augment", "eval.sets", "optim.lr", "optim.betas", "run.seed"]
)
@pytest.mark.parametrize("text", ["[" * 1000, "9" * 400], ids=["nested too deep", "too large"])
def test_what_no_setting_holds_is_refused(key, text):
    """Of a text or a list of them the number is one, and the brackets are none."""
    if not (text.startswith("9") and key in ("data.augment", "eval.sets")):
        with pytest.raises(ConfigError, match=key):
            override(BASE, [f"{key}={text}"])


@pytest.mark.parametrize("text", ["${oc.env:HOME}", "${run.seed}", "???", "a${b", r"\${x}"])
def test_a_text_in_a_file_or_a_checkpoint_is_taken_as_it_is(text, tmp_path):
    path = tmp_path / "recipe.py"
    path.write_text(
        "from training.config import Config, DataConfig, EvalConfig, RunConfig\n"
        f"config = Config(run=RunConfig(output={text!r}), data=DataConfig(train={text!r}), "
        f"eval=EvalConfig(sets=({text!r},)))\n"
    )
    config = load_config(path)
    assert (config.run.output, config.data.train, config.eval.sets) == (text, text, (text,))
    again, _ = Config.from_dict(json.loads(json.dumps(config.as_dict())))
    assert again == config


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("data=DataConfig(train='x', augment='flip')", r"data\.augment='flip': .*str is not"),
        ("head=HeadConfig(loss=['a'])", r"head\.loss=\['a'\]: Cannot convert 'list' to string"),
        ("head=HeadConfig(loss_args={1: 2})", r"head\.loss_args=\{1: 2\}: Key 1"),
        ("optim=OptimConfig(lr=np.float32(1))", r"optim\.lr=.*1\.0.*: expected a number of Python"),
    ],
)
def test_a_value_of_another_type_in_a_file_is_named_with_its_setting(setting, complaint, tmp_path):
    path = tmp_path / "recipe.py"
    data = "" if setting.startswith("data") else "data=DataConfig(train='x'), "
    path.write_text(
        f"import numpy as np\nfrom training.config import *\nconfig = Config({data}{setting})\n"
    )
    with pytest.raises(ConfigError, match=rf"recipe\.py.*: {complaint}"):
        load_config(path)
