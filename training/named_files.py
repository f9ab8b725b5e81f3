"""The files and folders that settings name, looked at before anything is read of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from evaluation.protocols.sets import KINDS, split_degradations
from pipeline.containers.forms import EXPECTED as FORMS_EXPECTED
from pipeline.containers.forms import form_of
from pipeline.named_path import check_path
from training.config import Config
from training.saving.files import split_choice
from training.setting_names import named_as


class _Expected(NamedTuple):
    what: str
    file: bool = True
    folder: bool = False


_SETTINGS = {
    "data.train": _Expected(FORMS_EXPECTED, folder=True),
    "data.identity_map": _Expected("a .csv with the columns file, label, identity, or a .json"),
    "data.leave_out": _Expected("a text file of identities and records"),
    "data.stage": _Expected(
        "a folder on a local disk of each node, with room for the training set",
        file=False,
        folder=True,
    ),
    "data.columns": _Expected(
        "a .csv, a .parquet or a folder of these, with a row for each image", folder=True
    ),
    "head.place_path": _Expected(
        "a folder on a local disk with room for the centers", file=False, folder=True
    ),
    "eval.sets": _Expected(
        f"a verification set such as lfw.bin, {', '.join(k.form for k in KINDS.values())}, or "
        "eval.sets=[] for none"
    ),
    "distill.teacher": _Expected(
        "a checkpoint's folder (RUN/checkpoints/step_…), the folder of a run, RUN@best, RUN@STEP, "
        "a file (.pth, .pt, .safetensors, .onnx), or a folder of arcface_torch's",
        folder=True,
    ),
    "run.init_from": _Expected(
        "a checkpoint (RUN/checkpoints/step_…), the folder of a run, RUN@best, RUN@STEP, a file of "
        "weights (.pth, .pt, .safetensors, .onnx), or a folder of arcface_torch's",
        folder=True,
    ),
    "run.resume": _Expected(
        "auto, never, a run's folder, RUN@best, RUN@STEP, or a checkpoint's own folder, "
        "RUN/checkpoints/step_…",
        file=False,
        folder=True,
    ),
}
_CHECKPOINTS = ("distill.teacher", "run.init_from", "run.resume")  # RUN@best and RUN@STEP, too
_WORDS = {"run.resume": ("auto", "never")}  # values that are no path


def check_named_files(config: Config, *settings: str) -> None:
    """Raise PathError for the first path of these settings that cannot be used.

    The error names the setting, the path, what is wrong with it, what was expected and a remedy.
    """
    for setting in settings:
        what, file, folder = _SETTINGS[setting]
        for path in _paths(config, setting):
            called = f"{setting}={path}"
            there: str | Path = path
            if setting in _CHECKPOINTS:
                there = split_choice(path)[0]
            if setting == "eval.sets":
                with named_as(called):
                    there = split_degradations(path)[0]
                if there.partition(":")[0] in KINDS:
                    continue  # looked at as it is opened
            check_path(there, called=called, expected=what, file=file, folder=folder)
            if setting == "data.train":
                form_of(Path(path), called=called)


def _paths(config: Config, setting: str) -> Iterator[str]:
    """What a setting names, where it names anything."""
    section, _, key = setting.partition(".")
    value = getattr(getattr(config, section), key)
    for path in (value,) if isinstance(value, str) else value:
        # Nothing at all is refused where something must be named: one of several, or the data.
        # Of data.columns "" says that a set has none.
        optional = setting == "data.columns" or (isinstance(value, str) and setting != "data.train")
        if path not in _WORDS.get(setting, ()) and (path or not optional):
            yield path
