"""Weights & Biases and MLflow by stand-ins: what they get, and that they are missing."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from facestream import UserError
from tests.training import tiny
from training.config import ConfigError, override
from training.reporting.dashboards.others import open_others, require_installed


class Calls(ModuleType):
    """A module whose functions and objects remember what they are called with."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def keep(self, name: str, answer: Any = None) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            self.calls.append((name, arguments, named))
            return answer

        return call

    def named(self, name: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        return [(arguments, named) for called, arguments, named in self.calls if called == name]


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Calls:
    module = Calls("wandb")
    run = SimpleNamespace(
        **{name: module.keep(name) for name in ("define_metric", "log", "finish")},
        config=SimpleNamespace(update=module.keep("config")),
        summary=SimpleNamespace(update=module.keep("summary")),
    )
    module.init = module.keep("init", run)  # type: ignore[attr-defined]
    module.Image = lambda image: ("image", image.shape)  # type: ignore[attr-defined]
    module.Histogram = lambda np_histogram: ("histogram", len(np_histogram[0]))  # type: ignore
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> Calls:
    module = Calls("mlflow")
    begun = SimpleNamespace(info=SimpleNamespace(run_id="run 7"))
    module.start_run = module.keep("start_run", begun)  # type: ignore[attr-defined]
    for name in ("log_params", "log_metrics", "log_image", "end_run"):
        setattr(module, name, module.keep(name))
    monkeypatch.setitem(sys.modules, "mlflow", module)
    return module


def show_a_run(name: str, folder: Path, *, fresh: bool = True) -> None:
    [dashboard] = open_others([name], folder, fresh=fresh)
    dashboard.settings({"run.seed": 1, "head.loss_args": {"margin": 0.5}})
    dashboard.scalars({"loss/loss": 3.0}, 5)
    dashboard.image("data/images", np.zeros((2, 4, 3), np.uint8), 5)
    dashboard.histogram("verification_lfw/genuine", np.ones(2), np.arange(3.0), 5)
    dashboard.forget_from(4)
    dashboard.finish({"run.seed": 1}, {"verification_ijbc/tar@far=0.0001": 0.9})
    dashboard.close()


def test_weights_and_biases_gets_everything(tmp_path, wandb, monkeypatch, caplog):
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    show_a_run("wandb", tmp_path)
    [(_, opened)] = wandb.named("init")
    assert (opened["project"], opened["name"], opened["resume"]) == (
        "facestream",
        tmp_path.name,
        "allow",
    )
    assert [arguments for arguments, _ in wandb.named("log")] == [
        ({"loss/loss": 3.0, "step": 5},),
        ({"data/images": ("image", (2, 4, 3)), "step": 5},),
        ({"verification_lfw/genuine": ("histogram", 2), "step": 5},),
    ]
    [((settings,), _)] = wandb.named("config")
    assert settings["head.loss_args"] == {"margin": 0.5}
    assert wandb.named("summary") == [(({"verification_ijbc/tar@far=0.0001": 0.9},), {})]
    assert wandb.calls[-1][0] == "finish"
    assert not caplog.records


def test_mlflow_gets_everything_in_names_that_it_takes(tmp_path, mlflow, caplog):
    show_a_run("mlflow", tmp_path)
    assert mlflow.named("start_run") == [((), {"run_name": tmp_path.name})]
    [((parameters,), _)] = mlflow.named("log_params")
    assert parameters == {"run.seed": "1", "head.loss_args": '{"margin": 0.5}'}
    assert mlflow.named("log_metrics") == [
        (({"loss/loss": 3.0},), {"step": 5}),
        (({"final/verification_ijbc/tar_far_0.0001": 0.9},), {}),
    ]
    [((image, place), _)] = mlflow.named("log_image")
    assert (image.shape, place) == ((2, 4, 3), "data/images/step_000000005.png")
    assert mlflow.calls[-1][0] == "end_run"
    assert not caplog.records


def test_mlflow_gets_many_or_long_settings_in_parts(tmp_path, mlflow):
    [dashboard] = open_others(["mlflow"], tmp_path, fresh=True)
    dashboard.settings({f"run.{i}": "x" * 900 for i in range(250)})
    dashboard.close()
    parts = [parameters for (parameters,), _ in mlflow.named("log_params")]
    assert [len(part) for part in parts] == [100, 100, 50]
    assert {len(value) for part in parts for value in part.values()} == {500}


def test_a_run_that_goes_on_is_the_same_run_there_and_a_new_one_is_not(tmp_path, wandb, mlflow):
    for fresh in (True, False, True):
        for name in ("wandb", "mlflow"):
            show_a_run(name, tmp_path, fresh=fresh)
    first, again, other = (named["id"] for _, named in wandb.named("init"))
    assert first == again != other
    assert [named for _, named in mlflow.named("start_run")] == [
        {"run_name": tmp_path.name},
        {"run_id": "run 7"},
        {"run_name": tmp_path.name},
    ]
    assert len(mlflow.named("log_params")) == 2, "settings cannot be given twice"


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("wandb", "mlflow"):
        monkeypatch.setitem(sys.modules, name, None)


def test_one_that_is_not_installed_is_named_with_the_command_that_installs_it(
    nothing_installed, monkeypatch
):
    with pytest.raises(UserError, match=r'^log\.also=\["wandb"\]: wandb .*`pip install wandb`, or'):
        require_installed(["wandb"])
    monkeypatch.setitem(sys.modules, "mlflow", ModuleType("mlflow"))
    require_installed(["mlflow"])
    require_installed([])


def test_others_are_unknown():
    config = tiny.config(Path("data"), Path("run"))
    assert override(config, ["log.also=[wandb,mlflow]"]).log.also == ("wandb", "mlflow")
    with pytest.raises(ConfigError, match=r"log\.also=\('comet',\): expected any of wandb and"):
        override(config, ["log.also=comet"])
