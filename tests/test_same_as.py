"""The guard of refactorings: what it sees, and what it does not mind."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests import same_as
from tests.same_as import CASES, ROOT, CannotRunError, Side, Trained, compare, first_difference

STEPS = [{"step": 1, "loss": 2.0, "lr": 0.1, "memory_mb": 7.0}, {"step": 2, "loss": 1.5, "lr": 0.1}]
TENSORS = {"a.weight": torch.tensor([[1.0, 0.0], [2.0, 3.0]]), "step": torch.tensor(4)}


def trained(*, loss: float = 1.5, memory: float = 7.0, **tensors: torch.Tensor) -> Trained:
    steps = [STEPS[0] | {"memory_mb": memory}, STEPS[1] | {"loss": loss}]
    return Trained(steps, TENSORS | tensors)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (trained(memory=8.0), None),
        (trained(loss=1.5000000000000002), "step 2: loss 1.5 != 1.5000000000000002"),
        (trained(b=torch.zeros(2)), "tensor b: only one of them has it"),
        (
            trained(**{"a.weight": torch.tensor([[1.0, -0.0], [2.0, 4.0]])}),
            "tensor a.weight[0, 1]: 0.0 != -0.0",
        ),
        (trained(step=torch.tensor(5)), "tensor step[]: 4 != 5"),
        (
            trained(step=torch.tensor([4])),
            "tensor step: torch.int64 () != torch.int64 (1,)",
        ),
    ],
)
def test_the_first_difference_is_named_to_the_last_bit(other, message):
    assert first_difference(trained(), other) == message


def test_values_that_are_not_numbers_are_like_themselves():
    nan = {"a.weight": torch.full((2, 2), float("nan"))}
    assert (
        first_difference(trained(loss=float("nan"), **nan), trained(loss=float("nan"), **nan))
        is None
    )


def test_a_run_that_ends_earlier_differs():
    shorter = trained()
    assert first_difference(trained(), replace(shorter, steps=shorter.steps[:1]))


def test_a_revision_that_does_not_exist_is_no_difference(tmp_path):
    with pytest.raises(CannotRunError, match="no_such_revision"):
        same_as.extract("no_such_revision", tmp_path / "tree")


@pytest.fixture
def changed(tmp_path) -> Side:
    """This work tree with a weight decay that is 1.0001 times as large."""
    left = shutil.ignore_patterns(".*", "runs", "wheelhouse", "tests")
    shutil.copytree(ROOT, tmp_path / "tree", ignore=left)
    config = tmp_path / "tree/training/config/optim.py"
    decay = re.compile(r"^(    weight_decay: \w+ = 5e-4)", re.MULTILINE)
    text, found = decay.subn(r"\1 * 1.0001", config.read_text())
    assert found == 1
    config.write_text(text)
    return Side("changed", tmp_path / "tree")


@pytest.mark.slow(seconds=15)
def test_a_weight_decay_times_1_0001_is_seen(changed, tmp_path, capsys):
    short = ("run.epochs=1", "run.keep=1")
    assert not compare([Side("here", ROOT), changed], CASES[:1], tmp_path, *short)
    assert " != " in capsys.readouterr().out


def test_a_setting_that_one_lacks_is_left_out_on_both(tmp_path, monkeypatch, capsys):
    """Its line is that of a command that does not know the setting."""
    here, older = Side("here", tmp_path), Side("older", tmp_path)
    given = {here.name: [], older.name: []}

    def run(command: list[str], **_: object) -> SimpleNamespace:
        name = Path(next(word for word in command if word.startswith("run.output="))).parent.name
        given[name].append(command)
        if name == "older" and "run.save_every=4" in command:
            error = "train_dist: run.save_every='4': no such key in run"
            return SimpleNamespace(returncode=2, stderr=error)
        return SimpleNamespace(returncode=0)

    (tmp_path / "faces").mkdir()
    monkeypatch.setattr(same_as.subprocess, "run", run)
    monkeypatch.setattr(Trained, "read", lambda output: trained())
    same_as._train_both([here, older], CASES[0], tmp_path / "0", ())
    assert "run.save_every is left out, older does not know it" in capsys.readouterr().out
    for commands in given.values():
        assert ["run.save_every=4" in command for command in commands] == [True, False]
