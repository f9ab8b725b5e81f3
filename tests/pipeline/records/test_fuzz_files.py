"""Damage in the files beside a .rec: refused by name, or made again, never a trace."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.collection import Collection, stack_labels
from pipeline.identity_map import read_identity_map, read_identity_names
from pipeline.named_path import PathError
from pipeline.record_filter import read_filter
from pipeline.records.index import RecordIndex, open_index
from pipeline.records.recordio import RecordError, RecordWriter, pack_image
from tests.damage import assert_refused_by_name, of_bytes, of_json

LABELS = (0, 0, 2, 1, 5, 5, 2)


@pytest.fixture
def rec(tmp_path) -> Path:
    with RecordWriter(tmp_path / "train.rec") as writer:
        begins = [
            writer.write(pack_image(f"image {number}".encode(), float(label), number))
            for number, label in enumerate(LABELS)
        ]
    lines = [f"{key}\t{begin}\n" for key, begin in enumerate(begins)]
    (tmp_path / "train.idx").write_text("".join(lines))
    return tmp_path / "train.rec"


def contents(index: RecordIndex) -> list[tuple[bytes, int]]:
    records = Collection.of(index)
    assert records.count_identities() == len(set(LABELS))
    everything = np.arange(len(index))
    return list(zip(map(index.image, range(len(index))), records.labels(everything).tolist()))


@pytest.mark.slow
def test_a_damaged_sidecar_is_made_again(rec, caplog, monkeypatch):
    """What is in it never differs from the .rec, and where damage was seen the file is named."""
    monkeypatch.setattr("pipeline.records.sidecar.sync", lambda descriptor: None)
    sidecar, kept = rec.with_suffix(".fsidx"), rec.with_suffix(".kept")
    whole = [(bytes(image), label) for image, label in contents(open_index(rec))]
    shutil.copy2(sidecar, kept)
    data = kept.read_bytes()
    preamble = data[:4096].rstrip(b" \n")
    mutations = [*of_bytes(data, count=150), *of_bytes(preamble, count=300, seed=1)]
    noticed = 0
    for content in mutations:
        if len(content) < 4096:  # of the preamble
            content = content.ljust(4095) + b"\n" + data[4096:]
        sidecar.write_bytes(content)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            found = contents(open_index(rec))
        assert [(bytes(image), label) for image, label in found] == whole
        if caplog.messages:
            assert str(sidecar) in caplog.messages[0]
            assert sidecar.read_bytes() == data, "made again"
            noticed += 1
    assert noticed > len(mutations) / 2


def test_damage_that_samples_did_not_show_is_named_where_labels_are_counted(rec):
    index = open_index(rec)
    for label in (-1, 6, 1 << 40):
        records = index.records.copy()
        records["label"][3] = label
        damaged = RecordIndex(rec, records, index.summary)
        with pytest.raises(RecordError, match=r"train\.fsidx is damaged: labels.*Remove it"):
            Collection.of(damaged).count_identities()


def test_a_damaged_idx_is_refused_by_name(rec):
    idx = rec.with_suffix(".idx")
    data = idx.read_bytes()
    open_index(rec)
    later = rec.stat().st_mtime + 1e6

    def read() -> None:
        os.utime(idx, (later, later))  # younger than the sidecar, so it is looked at
        open_index(rec)

    assert_refused_by_name(idx, of_bytes(data, count=400), read, RecordError)


CSV = b'file,label,identity\ntrain.rec,0,zoe\ntrain.rec,2,ann\ntrain.rec,5,"A, B"\n'


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_damaged_map_of_identities_is_refused_by_name(rec, tmp_path, mark):
    index, path = open_index(rec), tmp_path / "people.csv"

    def read() -> None:
        (labels,) = read_identity_map(path, [index])
        assert len(labels) == 6
        assert (labels >= 0).all()
        read_identity_names(path, [index])

    assert_refused_by_name(path, of_bytes(mark + CSV, count=400), read, (RecordError, PathError))


def test_a_damaged_map_in_json_is_refused_by_name(rec, tmp_path):
    index, path = open_index(rec), tmp_path / "people.json"
    listed = {"train.rec": {"0": "zoe", "2": "ann", "5": 7}}

    def read() -> None:
        read_identity_map(path, [index])
        read_identity_names(path, [index])

    assert_refused_by_name(path, of_json(listed, count=400), read, (RecordError, PathError))


def test_a_damaged_list_of_what_is_left_out_is_refused_by_name(rec, tmp_path):
    index, path = open_index(rec), tmp_path / "drop.txt"
    offset = index.records["offset"][3]
    text = f"# bad ones\nidentity 0\ntrain.rec record {offset}  # blurred\n"

    def read() -> None:
        kept = read_filter(path, [index])
        Collection([index], stack_labels([index]), kept).count_identities()

    mutations = of_bytes(text.encode(), count=400)
    assert_refused_by_name(path, mutations, read, (RecordError, PathError))
