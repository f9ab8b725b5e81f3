"""The dashboards of log.also: Weights & Biases and MLflow, each where it is installed."""

from __future__ import annotations

import importlib
import json
import os
import re
import uuid
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from facestream import UserError
from pipeline.whole_file import write_whole
from training.reporting.dashboards.dashboard import Dashboard
from training.reporting.dashboards.relay import Relay
from training.setting_value import as_given

_PARAMETERS_AT_ONCE = 100  # that MLflow takes
_LONGEST_PARAMETER = 500  # characters


class Wandb:
    """A run of Weights & Biases; a Dashboard. Its steps are a curve's own, and may come again."""

    def __init__(self, folder: Path, *, fresh: bool) -> None:
        self._wandb = importlib.import_module("wandb")
        known = None if fresh else _known(folder, "wandb")
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", "facestream"),
            name=folder.name,
            id=known or _keep(folder, "wandb", uuid.uuid4().hex[:8]),
            resume="allow",
            dir=str(folder),
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def forget_from(self, step: int) -> None:
        """Nothing is forgotten there: the curves of these steps are drawn a second time."""

    def settings(self, values: Mapping[str, Any]) -> None:
        """As a Dashboard's."""
        self._run.config.update(dict(values), allow_val_change=True)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """As a Dashboard's."""
        self._run.log({**values, "step": step})

    def image(self, name: str, image: np.ndarray, step: int) -> None:
        """As a Dashboard's."""
        self._run.log({name: self._wandb.Image(image), "step": step})

    def histogram(self, name: str, counts: np.ndarray, edges: np.ndarray, step: int) -> None:
        """As a Dashboard's."""
        drawn = self._wandb.Histogram(np_histogram=(counts, edges))
        self._run.log({name: drawn, "step": step})

    def finish(self, settings: Mapping[str, Any], scores: Mapping[str, float]) -> None:
        """As a Dashboard's; it has the settings already."""
        self._run.summary.update(dict(scores))

    def close(self) -> None:
        """As a Dashboard's."""
        self._run.finish()


class Mlflow:
    """A run of MLflow; a Dashboard. It has no histograms."""

    def __init__(self, folder: Path, *, fresh: bool) -> None:
        self._mlflow = importlib.import_module("mlflow")
        known = None if fresh else _known(folder, "mlflow")
        self._has_settings = known is not None
        if known:
            self._mlflow.start_run(run_id=known)
        else:
            begun = self._mlflow.start_run(run_name=folder.name)
            _keep(folder, "mlflow", begun.info.run_id)

    def forget_from(self, step: int) -> None:
        """Nothing is forgotten there: these steps get a second point."""

    def settings(self, values: Mapping[str, Any]) -> None:
        """As a Dashboard's; as texts, cut where MLflow cuts. It takes them once in a run's life."""
        if self._has_settings:
            return
        texts = [(key, as_given(value)[:_LONGEST_PARAMETER]) for key, value in values.items()]
        for start in range(0, len(texts), _PARAMETERS_AT_ONCE):
            self._mlflow.log_params(dict(texts[start : start + _PARAMETERS_AT_ONCE]))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """As a Dashboard's."""
        self._mlflow.log_metrics({_key(name): value for name, value in values.items()}, step=step)

    def image(self, name: str, image: np.ndarray, step: int) -> None:
        """As a Dashboard's."""
        self._mlflow.log_image(image, f"{_key(name)}/step_{step:09d}.png")

    def histogram(self, name: str, counts: np.ndarray, edges: np.ndarray, step: int) -> None:
        """Left out."""

    def finish(self, settings: Mapping[str, Any], scores: Mapping[str, float]) -> None:
        """As a Dashboard's: figures of their own, beside the curves that end in them."""
        self._mlflow.log_metrics({_key(f"final/{name}"): scores[name] for name in scores})

    def close(self) -> None:
        """As a Dashboard's."""
        self._mlflow.end_run()


_KINDS: dict[str, type[Wandb] | type[Mlflow]] = {"wandb": Wandb, "mlflow": Mlflow}


def require_installed(names: Sequence[str]) -> None:
    """Import the packages of these dashboards. Raises UserError for one that is not installed."""
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(
                f"log.also={json.dumps(list(names))}: {name} cannot be imported ({error}). "
                f"`pip install {name}`, or leave it out"
            ) from error


def open_others(names: Sequence[str], folder: Path, *, fresh: bool) -> list[Dashboard]:
    """The dashboards of these names, none of which a run waits for.

    Args:
        names: those that `require_installed` has found.
        folder: the run's, whose name they show; what they were called there is kept in it.
        fresh: whether the run begins; else it goes on where it is shown already.
    """
    return [Relay(name, partial(_KINDS[name], folder, fresh=fresh)) for name in names]


def _known(folder: Path, name: str) -> str | None:
    """What a run is called in a dashboard, as `_keep` has kept it."""
    try:
        return (folder / "dashboards" / name).read_text().strip() or None
    except OSError:
        return None


def _keep(folder: Path, name: str, known_as: str) -> str:
    (folder / "dashboards").mkdir(exist_ok=True)
    write_whole(folder / "dashboards" / name, f"{known_as}\n")
    return known_as


def _key(name: str) -> str:
    """A name of the letters that MLflow has in names."""
    return re.sub(r"[^-/\w. ]", "_", name)
