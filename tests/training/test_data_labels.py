"""Labels that are no identities in a row: said, refused, or numbered again, before any training."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from pipeline.records.recordio import RecordWriter, pack_image
from tests.training import tiny
from training.config import Config, ConfigError, override
from training.data import (
    TrainingData,
    count_classes,
    open_training_data,
    warn_of_empty_classes,
)
from training.distributed import World


def write_labels(folder: Path, labels: list[int]) -> Path:
    folder.mkdir()
    with RecordWriter(folder / "train.rec") as writer:
        for key, label in enumerate(labels):
            writer.write(pack_image(b"image %d" % key, float(label), key))
    return folder


def open_data(folder: Path, world: World, *settings: str) -> tuple[Config, TrainingData]:
    config = override(tiny.config(folder, folder / "run"), ["data.global_batch=2", *settings])
    return config, open_training_data(config, world)


@pytest.mark.parametrize("label", [0, 7])
def test_one_identity_is_refused(world, tmp_path, label):
    _, data = open_data(write_labels(tmp_path / "one", [label] * 8), world)
    with pytest.raises(ConfigError, match=r"1 identities, labels up to \d.*Expected at least two"):
        count_classes(data.records, None)


IDS = [4_000_001, 4_000_005, 4_000_003, 4_000_001]


def test_ids_as_labels_are_refused_with_both_remedies(world, tmp_path):
    _, data = open_data(write_labels(tmp_path / "ids", IDS), world)
    with pytest.raises(ConfigError, match=r"3 identities, labels up to 4000005.*dense.*4000006"):
        count_classes(data.records, None)
    assert count_classes(data.records, 4_000_006) == 4_000_006, "said to be meant"


def test_dense_labels_number_those_that_there_are(world, tmp_path, caplog):
    _, data = open_data(write_labels(tmp_path / "ids", IDS), world, "data.labels=dense")
    assert count_classes(data.records, None) == 3
    assert data.records.labels(np.arange(4)).tolist() == [0, 2, 1, 0]
    assert not caplog.records


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([], "the head has 6 classes, of which 3 have no image"),
        (["head.num_classes=85742"], "85742 classes, of which 85739 have no image"),
        (["data.labels=dense"], None),
    ],
)
def test_classes_that_nobody_has_are_reported(world, tmp_path, caplog, settings, message):
    with caplog.at_level(logging.WARNING):
        config, data = open_data(write_labels(tmp_path / "gaps", [0, 5, 3, 0]), world, *settings)
        assert not caplog.records, "a tool that makes no head, as preview, has no use for it"
        warn_of_empty_classes(data.records, config.head.num_classes)
    assert (message in caplog.text) if message else not caplog.records


def test_dense_labels_close_the_gaps_of_an_identity_map(world, tmp_path):
    folder = write_labels(tmp_path / "gaps", [0, 5, 3, 0])
    listed, drop = tmp_path / "people.csv", tmp_path / "drop.txt"
    listed.write_text("file,label,identity\ngaps,0,zoe\ngaps,5,ann\n")
    drop.write_text("identity 5\n")
    settings = [f"data.identity_map={listed}", f"data.leave_out={drop}", "data.global_batch=2"]
    _, data = open_data(folder, world, *settings)
    assert (data.records.num_classes, data.records.count_identities()) == (6, 2)
    _, data = open_data(folder, world, *settings, "data.labels=dense")
    assert count_classes(data.records, None) == 2
    assert data.records.labels(np.arange(3)).tolist() == [0, 1, 0]
