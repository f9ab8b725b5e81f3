"""Rooms below speak of their own arguments, and training adds which settings these are."""

from __future__ import annotations

import ast
import io
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.pair_set import write_bin
from facestream import UserError
from pipeline.records.recordio import RecordError
from tests.training import tiny
from training.assembly import create_loader, stream_batches
from training.config import Config, DataConfig, override
from training.data import open_training_data
from training.scored_sets import open_sets
from training.setting_names import settings_named
from training.step.precision import choose_precision

ROOT = Path(__file__).parents[2]
ROOMS = ("pipeline", "heads", "models", "evaluation", "synthetic")
KEYS = [line.partition("=")[0] for line in Config(data=DataConfig(train="x")).lines()]


def texts(source: str) -> Iterator[tuple[int, str]]:
    """(line, text) of every string that is no docstring."""
    tree = ast.parse(source)
    documents = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        text = node.value if isinstance(node, ast.Constant) else None
        if isinstance(text, str) and id(node) not in documents:
            yield node.lineno, text


def names_a_setting(text: str) -> bool:
    return any(re.search(rf"\b{re.escape(key)}\b", text) for key in KEYS)


@pytest.mark.parametrize("room", ROOMS)
def test_no_room_below_training_names_a_setting(room):
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for path in sorted((ROOT / room).rglob("*.py"))
        for line, text in texts(path.read_text(encoding="utf-8"))
        if names_a_setting(text)
    ]
    assert found == [], "say what is wrong with the argument; training adds the setting"


def test_the_guard_sees_messages_and_not_docstrings():
    source = '"""data.train"""\nraise ValueError(f"{x}: lower data.global_batch")\n"train.rec"'
    assert [line for line, text in texts(source) if names_a_setting(text)] == [2]


def test_settings_are_added_to_what_names_their_arguments_alone():
    for said, message in (
        ("raise limit or size", r"^raise limit or size\. In the configuration: data.size, eval.x$"),
        ("resize", "^resize$"),
    ):
        with pytest.raises(RecordError, match=message), settings_named("data.size", limit="eval.x"):
            raise RecordError(said)
    with pytest.raises(KeyError, match=r"^'size'$"), settings_named("data.size"):
        raise KeyError("size")


def add_idx(data: Path) -> None:
    (data / "train.idx").write_text("0\t0\n")


def cut(data: Path) -> None:
    rec = data / "train.rec"
    rec.write_bytes(rec.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (add_idx, (), r"list them as `record \d+` in .*: data\.leave_out$"),
        (cut, (), r"with max_bad_fraction=1\. In the configuration: data\.max_bad_fraction$"),
        (None, ("data.global_batch=4096",), r"lower global_batch\. .*: data\.global_batch$"),
        (None, ("data.augment=[flap]",), r"^augment=\['flap'\].*: data\.augment$"),
        (None, ("data.decode=hybrid",), r"^decode=hybrid: .*: data\.decode$"),
    ],
)
def test_what_the_data_cannot_do_is_refused_with_the_setting(
    world, tmp_path, change, settings, message
):
    data = tiny.write_set(tmp_path / "data")
    if change:
        change(data)
    config = override(tiny.config(data, tmp_path / "run"), settings)
    with pytest.raises(UserError, match=message):
        create_loader(config, world, open_training_data(config, world))


def test_bad_images_on_the_way_are_reported_with_the_settings(data, world, tmp_path):
    config = tiny.config(data, tmp_path / "run")
    training = open_training_data(config, world)
    # Only single images of another size get past the start: here all have it.
    other = override(config, ["data.image_size=48"])
    loader, _ = create_loader(other, world, training)
    message = r"In the configuration: data\.image_size, data\.max_bad_fraction$"
    with pytest.raises(RecordError, match=message), closing(stream_batches(loader)) as stream:
        next(stream)


def test_verification_sets_of_another_size_are_refused_with_the_settings(data, world, tmp_path):
    stored = io.BytesIO()
    Image.new("RGB", (48, 48)).save(stored, "PNG")
    write_bin(tmp_path / "odd.bin", [stored.getvalue()] * 40, np.arange(20) % 2 == 0)
    config = override(tiny.config(data, tmp_path / "run"), [f"eval.sets=[{tmp_path / 'odd.bin'}]"])
    message = r"^eval\.sets=.* 48×48 pixels, not 32×32 .*In the configuration: data\.image_size$"
    with pytest.raises(UserError, match=message):
        open_sets(config, world, choose_precision(world.device, "fp32"))
