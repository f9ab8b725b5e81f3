"""Configurations of arcface_torch: read without running them, and the same run in our settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from models import Architecture
from training.arcface_torch.settings import ArcFaceConfigError, translate
from training.config import Config, ConfigError, DataConfig, load_config, override

START = "from easydict import EasyDict as edict\nconfig = edict()\n"
# In the shapes of its own files: a margin list, a loss by name, arithmetic, no verification.
MARGINS = (
    START
    + """
config.margin_list = (1.0, 0.5, 0.0)
config.network = "r50"
config.resume = False
config.output = None
config.fp16 = True
config.momentum = 0.9
config.weight_decay = 1e-4
config.batch_size = 64
config.lr = 0.2
config.verbose = 1500
config.dali = False
config.rec = "/data/people"
config.num_classes = 300 * 10
config.num_image = 100000
config.num_epoch = 20
config.warmup_epoch = config.num_epoch // 10
config.val_targets = ['lfw', "agedb_30"]
"""
)
OLD = (
    START
    + """
config.loss = "cosface"
config.network = "r18"
config.embedding_size = 256
config.batch_size = 32
config.lr = 0.1  # batch size is 512
config.rec = "synthetic"
config.num_epoch = 30
config.warmup_epoch = -1
config.decay_epoch = [10, 16, 22]
config.val_targets = []
"""
)


def translated(text: str, folder: Path, *, gpus: int = 8) -> tuple[Config, str]:
    """Our configuration, as the overrides make it, and all notes."""
    path = folder / "theirs.py"
    path.write_text(text)
    found = translate(path, gpus=gpus)
    return override(Config(data=DataConfig(train="unknown")), found.overrides()), "\n".join(
        found.notes
    )


def test_every_setting_of_a_run_has_its_equivalent(tmp_path):
    config, notes = translated(MARGINS, tmp_path)
    assert (config.model.name, config.model.embedding_dim) == ("iresnet50", 512)
    assert config.head.loss == "arcface"
    assert config.head.loss_args == {"scale": 64.0, "margin": 0.5, "gradient": "straight_through"}
    assert (config.head.sample_rate, config.head.num_classes) == (1.0, 3000)
    assert config.data.train == "/data/people"
    assert config.eval.sets == ("/data/people/lfw.bin", "/data/people/agedb_30.bin")
    assert (config.eval.every_steps, config.log.every) == (1500, 10)
    assert (config.run.output, config.run.epochs, config.run.seed) == ("runs/theirs", 20, 2048)
    assert (config.optim.warmup_epochs, config.optim.power) == (2, 1.0)
    assert (config.optim.weight_decay, config.step.precision) == (1e-4, "auto")
    assert notes.splitlines() == [
        "the rate falls linearly, as arcface_torch's since April 2023; optim.power=2 is what it "
        "was before"
    ]


@pytest.mark.parametrize(("gpus", "batch", "rate"), [(8, 512, 0.2), (2, 128, 0.8), (1, 64, 1.6)])
def test_the_rate_of_a_step_is_theirs_on_any_number_of_gpus(gpus, batch, rate, tmp_path):
    """Theirs is taken as it is; ours is for 512 and follows the batch."""
    config, _ = translated(MARGINS, tmp_path, gpus=gpus)
    assert (config.data.global_batch, config.optim.lr) == (batch, rate)
    assert config.optim.lr * batch / 512 == pytest.approx(0.2)


def test_accumulated_gradients_are_micro_batches(tmp_path):
    config, _ = translated(f"{MARGINS}config.gradient_acc = 4\n", tmp_path)
    assert (config.data.global_batch, config.step.micro_batches) == (64 * 8 * 4, 4)
    assert config.optim.lr * 2048 / 512 == pytest.approx(0.2)


def test_configurations_from_before_margin_list_are_read(tmp_path):
    config, notes = translated(OLD, tmp_path)
    assert (config.head.loss, config.head.loss_args) == ("cosface", {"scale": 64.0, "margin": 0.4})
    assert (config.model.name, config.model.embedding_dim) == ("iresnet18", 256)
    assert (config.optim.schedule, config.optim.decay_epochs) == ("step", (10, 16, 22))
    assert config.optim.warmup_epochs == 0
    assert config.step.precision == "fp32", "base.py's default"
    assert config.optim.lr == 0.1, "stated for a batch of 512 there, too"
    assert "rec = 'synthetic': set data.train, tools/make_synthetic.py draws faces" in notes


@pytest.mark.parametrize(
    ("line", "check", "note"),
    [
        ("margin_list = (1.0, 0.0, 0.4)", ("head.loss", "cosface"), ""),
        ("margin_list = (1.0, 0.3, 0.2)", ("head.loss_args.margin", 0.2), "takes the third alone"),
        (
            "interclass_filtering_threshold = 0.4",
            ("head.loss_args.filter_above", 0.4),
            "filtered negatives leave the softmax here",
        ),
        ("sample_rate = 0.1", ("head.sample_rate", 0.1), ""),
        ("dali_aug = True", ("data.augment", ("flip", "arcface")), ""),
        ("optimizer = 'adamw'", ("optim.name", "adamw"), "here they use SGD: set head.lr"),
        ("output = 'work/one'", ("run.output", "work/one"), ""),
        ("resume = True", ("run.resume", "auto"), "tools/import_arcface_torch.py"),
        ("using_wandb = True", ("run.epochs", 20), "TensorBoard"),
        ("save_every_epoch = 3", ("run.epochs", 20), "save_every_epoch = 3: no equivalent"),
        ("output = os.path.join('a', 'b')", ("run.epochs", 20), "output = os.path.join('a', 'b')"),
        ("lr_func = lr_step_func", ("run.epochs", 20), "lr_func = lr_step_func: no literal"),
        ("num_epoch = 2 ** 3", ("run.epochs", 20), "num_epoch = 2 ** 3: no literal, not taken"),
        ("num_epoch = 1 // 0", ("run.epochs", 20), "num_epoch = 1 // 0: no literal, not taken"),
        ("seed = 1j", ("run.seed", 2048), "seed = 1j: no literal, not taken"),
        ("rec = b'/data'", ("data.train", "unknown"), "rec = b'/data': no literal, not taken"),
    ],
)
def test_what_differs_or_is_no_literal_is_named(line, check, note, tmp_path):
    config, notes = translated(f"{MARGINS}config.{line}\n", tmp_path)
    found, (key, expected) = config.as_dict(), check
    for part in key.split("."):
        found = found[part]
    assert found == expected
    assert note in notes


def test_what_changes_the_configuration_in_other_ways_is_named_by_its_line(tmp_path):
    lines = [
        "config.update(lr=9)",
        "config |= {'lr': 9}",
        "other = config",
        "config.__dict__['lr'] = 9",
        "config = edict(**{'lr': 9})",
        "config.num_epoch += 1",
        "del config.verbose",
        "if True: config.momentum = 0",
    ]
    config, notes = translated(MARGINS + "\n".join(lines), tmp_path)
    assert config.optim.lr == 0.2
    for number, line in enumerate(lines, start=MARGINS.count("\n") + 1):
        said = line.removesuffix(": config.momentum = 0")
        assert f"line {number}, {said}: no literal, not taken" in notes


@pytest.mark.parametrize(
    "line",
    [
        "if True:\n    config.lr = 9",
        "for config.lr in range(9): pass",
        "config.lr *= 2",
        "config.lr = config.x = 9",
        "config.lr, config.seed = 9, 9",
        "config.lr: float = 9",
        "config.margin_list[1] = 9",
        "del config.batch_size",
    ],
)
def test_what_decides_is_not_taken_from_before_a_line_that_changes_it(line, tmp_path):
    with pytest.raises(ArcFaceConfigError, match=r"is no literal.*write config"):
        translated(f"{MARGINS}{line}\n", tmp_path)


@pytest.mark.parametrize(
    "start",
    [
        "config = edict({'network': 'r100', 'embedding_size': 128})\n",
        "config = edict(network='r100', embedding_size=128)\n",
        "config = {}\nconfig['network'] = 'r100'\nconfig['embedding_size'] = 128\n",
    ],
)
def test_other_ways_to_write_the_same_are_read(start, tmp_path):
    config, _ = translated(start, tmp_path)
    assert (config.model.name, config.model.embedding_dim) == ("iresnet100", 128)


def test_a_base_beside_it_has_the_defaults(tmp_path):
    (tmp_path / "base.py").write_text(f"{START}config.lr = 0.02\nconfig.network = 'r34'\n")
    config, _ = translated(MARGINS.replace("config.lr = 0.2\n", ""), tmp_path)
    assert (config.optim.lr, config.model.name) == (0.02, "iresnet50")


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        ("mbf", Architecture("mbf")),
        ("vit_l_dp005_mask_005", Architecture("vit_l", options={"mask_ratio": 0.1})),
        ("vit_h", Architecture("vit", options={"dim": 1024, "depth": 48, "mask_ratio": 0.0})),
    ],
)
def test_networks_come_with_their_options(network, expected, tmp_path):
    config, _ = translated(f"{MARGINS}config.network = {network!r}\n", tmp_path)
    assert config.architecture == expected


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("network = 'r2060'", "'r2060' has no equivalent here: expected"),
        ("network = choose()", r"network = choose\(\) is no literal.*write config\.network"),
        ("lr = 0.1 * gpus", r"lr = 0\.1 \* gpus is no literal"),
        ("margin_list = (1.2, 0.5, 0.0)", "arcface_torch ends with an error there"),
        ("margin_list = (1.0, 0.5)", "expected three numbers"),
        ("optimizer = 'lamb'", "expected 'sgd' or 'adamw'"),
        ("batch_size = '128'", "batch_size = '128': expected a whole number of at least 1"),
        ("batch_size = 0", "batch_size = 0: expected a whole number of at least 1"),
        ("gradient_acc = 0", "gradient_acc = 0: expected a whole number of at least 1"),
        ("embedding_size = '512'", "embedding_size = '512': expected a number"),
        ("lr = 1e999", "lr = inf: expected a number"),
        (f"lr = 1{'0' * 400}", "expected a number"),
        ("network = ['r50']", "expected a text"),
        ("output = 20241125_01", "output = 2024112501: expected a text"),
        ("val_targets = 'lfw'", "val_targets = 'lfw': expected a list"),
    ],
)
def test_what_cannot_be_had_here_is_refused_by_name(line, complaint, tmp_path):
    path = tmp_path / "theirs.py"
    path.write_text(f"{MARGINS}config.{line}\n")
    with pytest.raises(ArcFaceConfigError, match=complaint):
        translate(path, gpus=8)
    with pytest.raises(ConfigError, match=r"It is a configuration of arcface_torch"):
        load_config(path)


def test_nothing_of_the_file_is_run(tmp_path):
    path, trace = tmp_path / "theirs.py", tmp_path / "trace"
    path.write_text(f"open({str(trace)!r}, 'w')\n{MARGINS}")
    assert translate(path, gpus=8) is not None
    with pytest.raises(ConfigError):
        load_config(path)
    assert not trace.exists()


@pytest.mark.parametrize(
    "text", ["config = 1\n", "no python {", "", "import os\nx = os.sep\n", f"x = {'-' * 9999}1"]
)
def test_other_files_are_no_configuration_of_arcface_torch(text, tmp_path):
    (tmp_path / "x.py").write_text(text)
    assert translate(tmp_path / "x.py", gpus=8) is None


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[3] / "configs").glob("*.py")))
def test_ours_are_not_taken_for_theirs(path):
    assert translate(path, gpus=8) is None


def test_a_start_with_one_prints_the_command_that_does_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    path = tmp_path / "theirs.py"
    path.write_text(MARGINS)
    with pytest.raises(ConfigError, match=r"tools/from_arcface_torch\.py .*theirs\.py") as refused:
        load_config(path)
    message = str(refused.value)
    assert "torchrun --nproc_per_node=2 train_dist.py configs/ms1mv2_r50.py \\\n" in message
    assert "data.global_batch=128" in message
    assert "optim.power=2 is what it was before" in message
