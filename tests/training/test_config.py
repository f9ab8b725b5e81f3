"""The configuration fails early and says what is allowed."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from heads import MARGINS, create_margin
from training.config import Config, ConfigError, DataConfig, HeadConfig, load_config, override

BASE = Config(data=DataConfig(train="x.rec"))
ARCFACE = Config(
    data=BASE.data,
    head=HeadConfig(loss="arcface", loss_args={"margin": 0.5, "scale": 32.0}),
)
# One of each kind: tests/test_configs.py builds them all.
CONFIGS = [
    Path(__file__).parents[2] / f"configs/{name}.py"
    for name in ("demo", "ms1mv2_r50", "magface", "webface42m_vit_t", "finetune")
]


def test_overrides_reach_every_kind_of_value():
    config = override(
        BASE,
        [
            "optim.lr=1",
            "data.augment=[flip,light]",
            "head.num_classes=7",
            "head.loss_args.margin=0.4",
            "model.sync_bn=true",
            "run.output=runs/x",
        ],
    )
    assert config.optim.lr == 1.0
    assert config.data.augment == ("flip", "light")
    assert config.head.num_classes == 7
    assert config.head.loss_args == {"margin": 0.4}
    assert config.model.sync_bn is True
    assert config.run.output == "runs/x"
    assert config.model == dataclasses.replace(BASE.model, sync_bn=True)


@pytest.mark.parametrize(
    ("override_", "complaint"),
    [
        ("optim.rate=1", r"optim\.rate.*the keys lr, momentum"),
        ("optimizer.lr=1", "the sections are run, data, model"),
        ("optim.lr=fast", "'fast'.*Float"),
        ("data.global_batch=1.5", "1.5.*Integer"),
        ("data.decode=tpu", r"expected one of \['auto', 'gpu', 'hybrid', 'cpu'\]"),
        ("optim.lr=inf", "above 0 and at most 1,000"),
        ("model.name=resnet51", r"model\.name='resnet51': expected one of .*'iresnet50'"),
        ("head.loss=arcfase", "head.loss.*arcfase.*cosface"),
        ("head.loss_args.angle=0.5", "head.loss_args: .*angle"),
        ("head.loss_args.name=0.5", "head.loss_args: .*name"),
        ("head.extra_terms={pairs: {}}", "head.extra_terms: unknown extra term 'pairs'"),
        ("head.extra_terms={sample_to_sample: 2}", "found 2, expected its parameters"),
        ("head.extra_terms={sample_to_sample: {s: 2}}", "has no parameter s; it has weight, mar"),
        ("head.extra_terms={sample_to_sample: {weight: 0}}", "weight=0, expected a finite number"),
        ("optim.lr=-1", r"optim\.lr=-1.0: expected above 0"),
        (
            "head.sample_rate_from={3: 1.5}",
            r"head\.sample_rate_from\[3\]=1.5: expected at least 0 and at most 1",
        ),
        ("head.sample_rate_from={last: 0.5}", "head.sample_rate_from.*last"),
        ("head.sample_rate_from={-1: 0.5}", r"sample_rate_from\[-1\]=-1: expected at least 0"),
        ("optim.betas=[0.9, 1.0]", r"optim\.betas\[1\]=1.0: expected at least 0 and below 1"),
        ("data.weights=[1, -1]", r"data\.weights\[1\]=-1.0: expected at least 0"),
        ("model.embedding_dim=1000000000", "at least 1 and at most 16,384"),
        ("model.width=1000000000", "at least 0.25 and at most 16"),
        ("model.width=0.3", "multiple of 0.25"),
        ("head.subcenters=9223372036854775808", "at least 1 and at most 1,000"),
        ("head.num_classes=9223372036854775808", "at most 1,000,000,000"),
        ("run.seed=9223372036854775808", "at most 9,223,372,036,854,775,807"),
        ("optim.lr=nan", r"optim\.lr=nan: expected above 0"),
        ("head.margin_warmup_epochs=-1", "head.margin_warmup_epochs"),
        ("head.subcenters=0", "head.subcenters=0: expected at least 1"),
        ("head.groups_scope=rank", "head.groups_scope.*rank"),
        ("head.backend=cuda", "head.backend.*cuda"),
        ("head.sample_rate=-0.1", r"head\.sample_rate=-0.1: expected at least 0 and at most 1"),
        ("data.max_bad_fraction=2", "at least 0 and at most 1"),
        ("optim.warmup_epochs=20", r"expected less than run\.epochs=20"),
        ("data=3", "expected section.key=value"),
        ("optim.lr", "expected key=value"),
        ("data.augment=[flip", "data.augment"),
        ("run.epochs=null", "run.epochs"),
    ],
)
def test_wrong_overrides_are_refused_with_what_is_allowed(override_, complaint):
    with pytest.raises(ConfigError, match=complaint):
        override(BASE, [override_])


@pytest.mark.parametrize("loss", MARGINS)
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_loss_goes_with_every_configuration_of_the_repository(path, loss, caplog):
    """A new loss starts from its own defaults with the file's scale, and the log says so."""
    file = load_config(path).head
    head = load_config(path, [f"head.loss={loss}"]).head
    if loss == file.loss:
        assert head == file
        assert not caplog.messages
        return
    scale = file.loss_args["scale"]
    assert create_margin(loss, **head.loss_args) == create_margin(loss, scale=scale)
    (line,) = caplog.messages
    assert f"head.loss={loss} starts from its own defaults" in line
    assert f'made for {file.loss}, {{"scale": {scale}}} stays' in line


@pytest.mark.parametrize("wrong", ["head.loss=arcfase", "data.max_bad_fraction=2", "optim.x=1"])
def test_what_is_refused_is_not_also_warned_of(wrong, caplog):
    with pytest.raises(ConfigError, match=wrong.partition("=")[0].replace(".", r"\.")):
        override(ARCFACE, ["head.loss=adaface", wrong])
    assert not caplog.messages
    override(ARCFACE, ["head.loss=adaface"])
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("reverse", [False, True])
def test_arguments_of_the_command_line_go_with_its_loss_in_any_order(reverse):
    given = ["head.loss=adaface", "head.loss_args.h=0.2"]
    head = override(ARCFACE, given[::-1] if reverse else given).head
    assert head.loss_args == {"scale": 32.0, "h": 0.2}


def test_a_mapping_given_whole_replaces_the_files():
    assert override(ARCFACE, ["head.loss_args={}"]).head.loss_args == {}
    assert override(ARCFACE, ["head.loss_args={margin: 0.3}"]).head.loss_args == {"margin": 0.3}


def test_a_term_over_the_whole_batch_is_refused_with_micro_batches():
    terms = "head.extra_terms={sample_to_sample: {weight: 2}}"
    assert override(BASE, [terms]).head.extra_terms == {"sample_to_sample": {"weight": 2}}
    with pytest.raises(ConfigError, match=r"step\.micro_batches=2: expected 1 with SampleToSample"):
        override(BASE, [terms, "step.micro_batches=2"])
    rates = ["head.sample_rate_from={3: 0.5}", "head.sample_rate_from={4: 0.6}"]
    assert override(ARCFACE, rates).head.sample_rate_from == {4: 0.6}


def test_only_the_main_rank_speaks_of_a_new_loss(monkeypatch, caplog):
    monkeypatch.setenv("RANK", "1")
    override(ARCFACE, ["head.loss=softmax"])
    assert not caplog.messages


def test_a_file_that_is_missing_or_defines_no_config_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(tmp_path / "none.py")
    (tmp_path / "typo.py").write_text("from training.config import *; DataConfig(batch=3)")
    with pytest.raises(ConfigError, match=r"typo\.py, line 1: .*unexpected keyword.*'batch'"):
        load_config(tmp_path / "typo.py")
    (tmp_path / "empty.py").write_text("answer = 42\n")
    with pytest.raises(ConfigError, match="must define `config`"):
        load_config(tmp_path / "empty.py")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("x = 1\n\nconfig = None.data\n", "line 3: AttributeError: 'NoneType'"),
        ("x = 1\nconfig = Config(\n", "line 2: SyntaxError: '\\(' was never closed"),
        ("import nowhere_at_all\n", "line 1: ModuleNotFoundError: No module named"),
        ("def f():\n    raise KeyError\n\nf()\n", "line 2: KeyError$"),
        ("import json\njson.loads('{')\n", "line 2: JSONDecodeError: Expecting property"),
        (
            "\nfrom training.config import *\nRunConfig(epochs=0)\n",
            "line 3: run.epochs=0",
        ),
        (
            "from training.config import *\nRunConfig(epochs='3')\n",
            "line 2: run.epochs",
        ),
        ("from training.config import *\nDataConfig(weights=3)\n", "line 2: TypeError"),
    ],
)
def test_a_file_that_raises_is_named_with_its_own_line(tmp_path, text, complaint):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"mine\.py, {complaint}") as caught:
        load_config(path)
    assert "training/" not in str(caught.value)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"\0\0", "é = 'é'".encode("latin-1")])
def test_a_file_that_is_no_text_is_named(tmp_path, content):
    (tmp_path / "mine.py").write_bytes(content)
    with pytest.raises(ConfigError, match=r"mine\.py"):
        load_config(tmp_path / "mine.py")


def test_every_number_among_the_settings_has_a_range():
    """None is left to an allocator: a field with a number in its type states what it may be."""
    sections = [type(getattr(BASE, section.name)) for section in dataclasses.fields(BASE)]
    without = [
        f"{section.__name__}.{field.name}"
        for section in sections
        for field in dataclasses.fields(section)
        if re.search(r"\b(int|float)\b", re.sub(r"Annotated\[.*", "", field.type))
    ]
    assert not without


def test_a_configuration_cannot_be_changed_once_built():
    with pytest.raises(dataclasses.FrozenInstanceError):
        BASE.optim.lr = 3.0


def test_lines_can_be_given_back_as_overrides():
    changed = override(BASE, ["data.augment=[flip,geometry]", "head.loss_args.margin=0.3"])
    assert override(BASE, changed.lines()) == changed


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("head.sample_heads=4", "head.sample_groups"),
        ("head.random_heads=1", "head.random_groups"),
        ("head.heads_scope=sample", "head.groups_scope"),
    ],
)
def test_a_setting_that_has_another_name_now_is_refused_with_it(old, new, tmp_path):
    """On the command line and in a configuration file."""
    key, _, value = old.partition("=")
    with pytest.raises(ConfigError, match=f"{key}='{value}': {key} is called {new} now"):
        override(BASE, [old])
    path = tmp_path / "old.py"
    path.write_text(
        "from training.config import Config, HeadConfig\n"
        f"config = Config(head=HeadConfig({key.partition('.')[2]}=1))\n"
    )
    with pytest.raises(ConfigError, match=f"{key} is called {new} now$"):
        load_config(path)


@pytest.mark.parametrize(
    "other",
    ["head.sample_rate=0.1", "head.sample_rate_from={2: 0.5}", "head.sample_rate_from={2: 1.0}"],
)
@pytest.mark.parametrize("name", ["head.sample_groups", "head.sample_count"])
def test_groups_or_a_count_and_a_rate_exclude_each_other(name, other):
    with pytest.raises(ConfigError, match=rf"{name}=10: expected 0 with a sample rate"):
        override(BASE, [other, f"{name}=10"])


def test_groups_and_a_count_exclude_each_other():
    with pytest.raises(ConfigError, match=r"head\.sample_count=9: expected 0 with head\.sample_g"):
        override(BASE, ["head.sample_count=9", "head.sample_groups=10"])


@pytest.mark.parametrize(("num_classes", "rate"), [(50, 1.0), (100, 1.0), (400, 0.25)])
def test_a_count_of_centers_is_a_share_of_those_there_are(num_classes, rate):
    head = override(BASE, ["head.sample_count=100"]).head
    assert head.sample_rate_at(7, num_classes=num_classes) == rate


def test_batches_of_one_identity_are_refused_where_they_would_have_no_negatives():
    """A loss that is always 0 is said, not trained."""
    alike = ["data.order=balanced", "data.global_batch=128", "data.images_per_identity=128"]
    override(BASE, alike)
    override(BASE, [*alike[:2], "data.images_per_identity=64", "head.sample_rate=0"])
    with pytest.raises(ConfigError, match="without any the loss is always 0"):
        override(BASE, [*alike, "head.sample_rate=0"])


def test_the_sample_rate_of_an_epoch_is_the_last_that_was_set():
    head = override(BASE, ["head.sample_rate=0.1", "head.sample_rate_from={4: 0.5, 6: 1.0}"]).head
    rates = [head.sample_rate_at(epoch, num_classes=500) for epoch in range(8)]
    assert rates == [0.1] * 4 + [0.5] * 2 + [1.0] * 2


def test_changes_are_what_is_not_at_its_default_and_the_data():
    plain = Config(data=DataConfig(train="a.rec"))
    assert plain.changes() == ["data.train=a.rec"]
    changed = override(plain, ["optim.lr=0.2", "run.epochs=20", "head.loss_args={margin: 0.3}"])
    message = ["data.train=a.rec", 'head.loss_args={"margin": 0.3}', "optim.lr=0.2"]
    assert changed.changes() == message, "20 epochs are the default"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_comes_back_from_json(path):
    config = load_config(path, ["head.sample_rate_from={3: 0.5}", "data.augment=[flip,light:0.2]"])
    found, lines = Config.from_dict(json.loads(json.dumps(config.as_dict())))
    assert (found, lines) == (config, ())


def test_settings_of_other_versions_are_named():
    values = BASE.as_dict()
    del values["optim"]["clip"], values["log"]
    values["optim"]["nesterov"] = True
    found, lines = Config.from_dict(values)
    assert found == override(BASE, ())
    assert lines == (
        "settings that no longer exist: optim.nesterov=true",
        "settings newer than it, at their defaults: optim.clip, log.every, log.also, log.pictures",
    )
    for odd in ({"optim": 3}, {"optim": {"lr": -1}}, {"optim": {"lr": "much"}}):
        with pytest.raises(ConfigError, match="optim"):
            Config.from_dict(values | odd)
