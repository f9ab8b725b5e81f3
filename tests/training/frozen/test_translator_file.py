"""A translator's file comes back as it was written, and what is none is named."""

from __future__ import annotations

import errno
import os
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from evaluation.translation import TranslationError, Translator, Trial
from pipeline import whole_file
from pipeline.named_path import PathError
from training.frozen.card import OperatingPoint
from training.frozen.translator_file import KEY, TranslatorFile, read_translator, write_translator

FILE = TranslatorFile(
    Translator("rotation", np.eye(3, 4, dtype=np.float32), np.zeros(4, np.float32)),
    *("0a", "1b", "old.onnx", "runs/zoë@best"),
    flip=True,
    fitted_on="people",
    images=100,
    people=20,
    trials=[Trial("rotation", 0.9, 0.01, 0.8), Trial("affine, ridge 0.1", 0.8, None, None)],
    points=[OperatingPoint("lfw", 1e-3, 0.31, 0.29, None, 3000, 3000, True)],
)


@pytest.fixture
def path(tmp_path):
    write_translator(tmp_path / "t.safetensors", FILE)
    return tmp_path / "t.safetensors"


def test_it_comes_back(path):
    found = read_translator(path)
    assert np.array_equal(found.translator.matrix, FILE.translator.matrix)
    assert np.array_equal(found.translator.offset, FILE.translator.offset)
    assert found.translator.kind == "rotation"
    assert replace(found, translator=FILE.translator) == FILE
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def rewritten(path, *, text=None, **changes):
    """With another text, or other tensors; None leaves one out."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        metadata = dict(file.metadata())
    if text is not None:
        metadata[KEY] = text(metadata[KEY])
    tensors = {name: one for name, one in (load_file(path) | changes).items() if one is not None}
    save_file(tensors, path, metadata=metadata)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.write_bytes(b""), "cannot be read as a translator"),
        (lambda path: path.write_bytes(path.read_bytes()[:-4]), "cannot be read as a translator"),
        (lambda path: path.write_bytes(b"\xff" * 100), "cannot be read as a translator"),
        (lambda path: save_file({"w": np.ones(2)}, path), "it says nothing of a translator"),
        (lambda path: rewritten(path, text=lambda text: text[:-5]), "cannot be read"),
        (lambda path: rewritten(path, text=lambda text: "[]"), "cannot be read"),
        (
            lambda path: rewritten(path, text=lambda text: text.replace('t": 1,', 't": 2,')),
            "format is not 1",
        ),
        (
            lambda path: rewritten(path, text=lambda text: text.replace("0.001", "0")),
            "at an FMR of 0",
        ),
        (lambda path: rewritten(path, matrix=None), "matrix"),
        (lambda path: rewritten(path, offset=np.zeros(3, np.float32)), r"its offset \(3,\)"),
        (lambda path: rewritten(path, matrix=np.full((3, 4), np.nan, np.float32)), "not finite"),
        (lambda path: rewritten(path, matrix=np.ones((3, 4))), "its matrix is float64"),
    ],
)
def test_what_is_no_translator_is_named(change, message, path):
    change(path)
    with pytest.raises(
        TranslationError, match=rf"t\.safetensors cannot be read.*{message}|{message}"
    ):
        read_translator(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(PathError, match="does not exist"):
        read_translator(tmp_path / "none.safetensors")


def test_a_full_disk_leaves_the_old_file(path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(whole_file, "sync", full)
    with pytest.raises(OSError, match="No space"):
        write_translator(path, replace(FILE, images=7))
    assert read_translator(path).images == 100
    assert [file.name for file in path.parent.iterdir()] == [path.name]
