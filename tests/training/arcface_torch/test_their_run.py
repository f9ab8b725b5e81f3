"""The configuration of a run of arcface_torch: found beside its files, and corrected by them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from models import Architecture
from pipeline.named_path import PathError
from training.arcface_torch.config_text import as_file
from training.arcface_torch.reading import read_arcface_torch
from training.arcface_torch.run import TheirRun, find_config, their_run
from training.arcface_torch.settings import translate
from training.arcface_torch.training_log import read_training_log
from training.arcface_torch.weights import ArcFaceTorchError, Optimization, Weights
from training.config import load_config

NETWORK = Architecture("iresnet18", embedding_dim=8, image_size=32)
STATE = dict(NETWORK.create().state_dict())
TOLD = Optimization(*(0.2, 0.9, 5e-4, 5e-4), power=1.0, warmup_steps=200, total_steps=2000)
CONFIG = """
config.margin_list = (1.0, 0.5, 0.0)
config.network = "r18"
config.embedding_size = 8
config.batch_size = 64
config.lr = 0.2
config.rec = "/data/people"
config.num_classes = 11
config.num_epoch = 20
config.warmup_epoch = 2
config.val_targets = []
"""


def weights(**changed: object) -> Weights:
    known = {"step": 600, "epoch": 6, "ranks": 4, "optimization": TOLD, **changed}
    return Weights(NETWORK, STATE, **known)


def run(folder: Path, found: Weights, more: str = "") -> TheirRun:
    path = folder / "theirs.py"
    path.write_text(CONFIG + more)
    return their_run(found, translate(path, gpus=4), path, folder / "ours")


def test_what_the_checkpoint_says_counts(tmp_path):
    """The run had other values when it was saved than its file has now."""
    message = Optimization(0.4, 0.8, 1e-4, 2e-4, power=2, warmup_steps=100, total_steps=2000)
    found = run(tmp_path, weights(optimization=message))
    optim, config = found.config.optim, found.config
    assert optim.lr == 0.4 * 512 / 256
    assert (optim.momentum, optim.weight_decay, config.head.weight_decay) == (0.8, 1e-4, 2e-4)
    assert (optim.power, optim.warmup_epochs) == (2.0, 1.0)
    assert (found.step, found.steps_per_epoch, config.run.epochs) == (600, 100, 20)
    assert config.run.output == str(tmp_path / "ours")
    assert config.data.image_size == 32
    assert "optim.momentum = 0.8: the checkpoint's, the configuration's is 0.9" in " ".join(
        found.settings.notes
    )
    (tmp_path / "config.py").write_text(as_file("theirs.py", found.settings))
    assert load_config(tmp_path / "config.py") == config


@pytest.mark.parametrize(
    "name",
    ['x"""+open("trace","w").name+""".py', 'x\ny".py', "back\\.py", os.fsdecode(b"latin-\xe9.py")],
    ids=["code", "lines", "backslash", "not UTF-8"],
)
def test_nothing_of_a_files_name_is_run(name, tmp_path, monkeypatch):
    """It stands in the configuration that is written, which is Python and is run."""
    monkeypatch.chdir(tmp_path)
    found = run(tmp_path, weights())
    Path("config.py").write_text(as_file(name, found.settings), encoding="utf-8")
    assert load_config(Path("config.py")) == found.config
    assert not Path("trace").exists()


def test_nothing_differs_where_both_say_the_same(tmp_path):
    assert run(tmp_path, weights()).settings.notes == ()


def test_accumulated_gradients_are_fewer_steps(tmp_path):
    found = run(tmp_path, weights(), "config.gradient_acc = 4\n")
    assert (found.step, found.steps_per_epoch) == (150, 25)
    assert found.config.step.micro_batches == 4
    assert "a step here is 4 of theirs" in " ".join(found.settings.notes)


def test_what_differs_here_is_said(tmp_path):
    notes = " ".join(run(tmp_path, weights(step=100, epoch=1)).settings.notes)
    assert "step 100 is inside the warm-up of W = 200 steps" in notes
    notes = " ".join(run(tmp_path, weights(step=606)).settings.notes)
    assert "606 steps in 6 epochs, where its schedule counts 100" in notes


@pytest.mark.parametrize(
    ("changed", "more", "complaint"),
    [
        ({}, 'config.network = "r34"\n', "says iresnet34 .*weights are of iresnet18"),
        ({}, "config.embedding_size = 16\n", "16 features; the weights are of .* pixels, 8: name"),
        ({"ranks": 2}, "", "says 4 GPUs, there are files of 2 ranks: name the files of all"),
        ({}, "config.num_classes = 12\n", "says 12 classes, the files of 4 ranks have 11"),
    ],
)
def test_the_configuration_of_another_run_is_refused(tmp_path, changed, more, complaint):
    with pytest.raises(ArcFaceTorchError, match=complaint):
        run(tmp_path, weights(centers=torch.zeros(11, 8), **changed), more)


def test_a_log_is_read_as_it_was_printed(tmp_path):
    log = tmp_path / "training.log"
    lines = [
        "-rank_id: 0",
        "-: network                  r100",
        "-: wd                       1",
        "-rank_id: 0",
        "-: margin_list              (1.0, 0.5, 0.0)",
        "-: network                  r50",
        "-: output                   None",
        "-: batch_size               128",
        "-: total_batch_size         1024",
        "-: interclass_filtering_threshold0.4",
        "-Speed 1000.00 samples/sec   Loss 40.1   Epoch: 0",
    ]
    log.write_text("".join(f"Training: 2026-01-01 12:00:00,123{line}\n" for line in lines))
    values = read_training_log(log).values
    assert values == {
        "margin_list": [1.0, 0.5, 0.0],
        "network": "r50",
        "output": None,
        "batch_size": 128,
        "total_batch_size": 1024,
        "interclass_filtering_threshold": 0.4,
    }
    assert translate(log, gpus=None).gpus == 8
    assert read_training_log(tmp_path / "none.log") is None
    assert find_config([tmp_path], gpus=None)[0] == log


def test_a_file_of_settings_goes_before_the_log_and_several_are_asked_about(tmp_path):
    (tmp_path / "a.py").write_text(CONFIG)
    (tmp_path / "train.py").write_text("print('no configuration')\n")
    path, translated, why = find_config([tmp_path], gpus=2)
    assert (path.name, translated.gpus, why) == ("a.py", 2, "")
    assert find_config([tmp_path], gpus=None)[1:] == (
        None,
        f"{tmp_path / 'a.py'} does not say on how many GPUs it trains, and its batch is of one of "
        "them: expected their number, as --gpus 8",
    )
    (tmp_path / "b.py").write_text(CONFIG)
    with pytest.raises(ArcFaceTorchError, match=r"a\.py, .*b\.py: name the run's own as --config"):
        find_config([tmp_path], gpus=2)
    assert find_config([tmp_path / "a.py"], gpus=2) is None, "a file, and no folder"


def test_pipes_and_devices_which_have_no_end_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "a.py")
    (tmp_path / "b.py").symlink_to("/dev/zero")
    assert find_config([tmp_path], gpus=4) is None
    os.mkfifo(tmp_path / "model.pt")
    (tmp_path / "backbone.pth").symlink_to("/dev/zero")
    for source in (tmp_path, tmp_path / "model.pt", tmp_path / "backbone.pth"):
        with pytest.raises(PathError, match="is a pipe, a socket or a device"):
            read_arcface_torch([source])
