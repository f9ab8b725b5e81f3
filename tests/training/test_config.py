"""The configuration fails early and says what is allowed."""

import dataclasses
from pathlib import Path

import pytest

from heads import MARGINS, create_margin
from training.config import Config, ConfigError, DataConfig, HeadConfig, load_config, override

BASE = Config(data=DataConfig(train="x.rec"))
ARCFACE = Config(
    data=BASE.data,
    head=HeadConfig(loss="arcface", loss_args={"margin": 0.5, "scale": 32.0}),
)
CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_of_the_repository_loads(path):
    assert load_config(path).data.train


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
        ("optim.lr=inf", "a positive rate"),
        ("model.name=resnet51", r"model\.name='resnet51': expected one of .*'iresnet50'"),
        ("head.loss=arcfase", "head.loss.*arcfase.*cosface"),
        ("head.loss_args.angle=0.5", "head.loss_args: .*angle"),
        ("head.loss_args.name=0.5", "head.loss_args: .*name"),
        ("optim.lr=-1", r"optim\.lr=-1.0: expected a positive rate"),
        ("head.sample_rate_from={3: 1.5}", r"head\.sample_rate_from\[3\]=1.5: expected a rate"),
        ("head.sample_rate_from={last: 0.5}", "head.sample_rate_from.*last"),
        ("head.margin_warmup_epochs=-1", "head.margin_warmup_epochs"),
        ("head.subcenters=0", "head.subcenters=0: expected at least 1"),
        ("head.heads_scope=rank", "head.heads_scope.*rank"),
        ("head.backend=cuda", "head.backend.*cuda"),
        ("head.sample_rate=0", r"head\.sample_rate=0.0: expected in \(0, 1\]"),
        ("data.max_bad_fraction=2", "a fraction from 0 to 1"),
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


@pytest.mark.parametrize("reverse", [False, True])
def test_arguments_of_the_command_line_go_with_its_loss_in_any_order(reverse):
    given = ["head.loss=adaface", "head.loss_args.h=0.2"]
    head = override(ARCFACE, given[::-1] if reverse else given).head
    assert head.loss_args == {"scale": 32.0, "h": 0.2}


def test_a_mapping_given_whole_replaces_the_files():
    assert override(ARCFACE, ["head.loss_args={}"]).head.loss_args == {}
    assert override(ARCFACE, ["head.loss_args={margin: 0.3}"]).head.loss_args == {"margin": 0.3}
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
    with pytest.raises(ConfigError, match=r"typo\.py: .*unexpected keyword argument 'batch'"):
        load_config(tmp_path / "typo.py")
    (tmp_path / "empty.py").write_text("answer = 42\n")
    with pytest.raises(ConfigError, match="must define `config`"):
        load_config(tmp_path / "empty.py")


def test_a_configuration_cannot_be_changed_once_built():
    with pytest.raises(dataclasses.FrozenInstanceError):
        BASE.optim.lr = 3.0


def test_lines_can_be_given_back_as_overrides():
    changed = override(BASE, ["data.augment=[flip,geometry]", "head.loss_args.margin=0.3"])
    assert override(BASE, changed.lines()) == changed


def test_multi_head_sampling_and_a_rate_exclude_each_other():
    with pytest.raises(ConfigError, match=r"head\.sample_heads=10: expected 0 with"):
        override(BASE, ["head.sample_rate=0.1", "head.sample_heads=10"])


def test_the_sample_rate_of_an_epoch_is_the_last_that_was_set():
    head = override(BASE, ["head.sample_rate=0.1", "head.sample_rate_from={4: 0.5, 6: 1.0}"]).head
    rates = [head.sample_rate_at(epoch) for epoch in range(8)]
    assert rates == [0.1] * 4 + [0.5] * 2 + [1.0] * 2
