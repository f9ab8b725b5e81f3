"""docs/versions.md has the formats that the code reads and writes, and the names settings had."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import evaluation.leaks.overlap
import evaluation.predicted
import evaluation.result
import pipeline.containers.set_index
import pipeline.records.sidecar
import training.distill.embedding_cache
import training.frozen.card
import training.frozen.translator_file
import training.saving.files
from facestream import VERSION
from training.config.renamed import RENAMED

PAGE = (Path(__file__).parents[1] / "docs/versions.md").read_text(encoding="utf-8")
FORMATS = {
    "`train.fsidx`": pipeline.records.sidecar._FORMAT,
    "`.facestream.fsidx`": pipeline.containers.set_index._FORMAT,
    "cached embeddings": training.distill.embedding_cache._FORMAT,
    "a model's card": training.frozen.card.FORMAT,
    "`results.json`": evaluation.result.FORMAT,
    "`overlap.json`": evaluation.leaks.overlap.FORMAT,
    "what `tools/predict.py` writes": evaluation.predicted.FORMAT,
    "a translator": training.frozen.translator_file.FORMAT,
}


@pytest.mark.parametrize("file", FORMATS)
def test_the_page_has_the_format_of_each_file(file):
    (row,) = re.findall(rf"^\| {re.escape(file)}.*$", PAGE, re.MULTILINE)
    assert row.split("|")[2].strip(" `") == str(FORMATS[file])


def test_the_page_has_the_format_of_checkpoints_and_the_version():
    assert f"its `format`, which is {training.saving.files.FORMAT} now" in PAGE
    assert f"reads those up to {training.saving.files.FORMAT}" in PAGE
    assert f"one version so far, {VERSION}," in PAGE


def test_the_page_has_every_setting_that_had_another_name():
    (row,) = re.findall(r"^\| from before a setting had another name.*$", PAGE, re.MULTILINE)
    old, new = row.split(": now ")
    assert set(re.findall(r"head\.\w+", old)) == set(RENAMED)
    assert set(re.findall(r"head\.\w+", new.split(") |")[0])) == set(RENAMED.values())
