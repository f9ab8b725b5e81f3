"""Damage in what a run has written: refused by name, or counted as missing, never a trace."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.records.index import open_index
from pipeline.records.manifest import manifest_path, read_names
from pipeline.records.record_file import fingerprint
from tests import damage
from tests.training import tiny
from tests.training.frozen.test_onnx_network import open_network, write_onnx
from tests.training.saving.test_checkpoint_files import make
from training.config import ConfigError, load_config
from training.distill.embedding_cache import EmbeddingCacheError, open_embeddings, write_embeddings
from training.frozen.onnx_file import OnnxError
from training.reporting.journal import forget_after, read_curves
from training.saving import files, resume
from training.saving.files import CheckpointError
from training.saving.lock import FILE as LOCK
from training.saving.lock import require_free
from training.saving.reading import open_weights
from training.saving.run_state import NAME, RunState, describe_silent_end
from training.saving.weight_file import WeightsError
from training.weights import identities

MANY = 200  # mutations of a file
needs_onnx = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime")),
    reason="onnx and onnxruntime are not installed",
)


def never_refused(path: Path, contents: Iterator[bytes], read: Callable[[], object]) -> None:
    """What is damaged counts as missing."""
    for content in contents:
        path.write_bytes(content)
        try:
            read()
        except Exception as error:
            raise AssertionError(f"{content[:2000]!r} ends in {error!r}") from error


@pytest.mark.parametrize("name", ["manifest.json", "about.json", "scores.json"])
def test_a_damaged_document_of_a_checkpoint_is_refused_by_name_or_passed_over(tmp_path, name):
    make(tmp_path, 1, accuracy=0.5)
    path = make(tmp_path, 2, accuracy=0.7)
    files.write_scores(path, {"lfw": {"accuracy": 0.7}}, compared_by=["lfw"])
    whole = json.loads((path / name).read_text())

    def read() -> None:
        files.newest(tmp_path)
        files.best(tmp_path)
        files.faults(path)
        files.counters(path)
        files.facts(path)
        files.read_about(path)

    mutations = damage.of_json(whole, count=MANY)
    if name == "about.json":
        damage.assert_refused_by_name(path / name, mutations, read, CheckpointError)
    else:
        never_refused(path / name, mutations, read)


def test_damaged_documents_of_a_run_count_as_missing(tmp_path):
    state = {"status": "running", "step": 3, "host": "x", "memory_kills": 1, "checkpoint": "a"}
    facts = {"dataset": "abc", "number of classes": 5}
    lock = {"token": "a", "host": "h", "host_id": "i", "since": "s", "pid": 1, "started": "4"}

    def read_state() -> None:
        steps = {"steps_per_epoch": 3, "total_steps": 9}
        memory = {"memory_predicted": 10**9, "memory_available": 10**9}
        describe_silent_end(RunState(tmp_path, **steps, **memory).before)

    def read_lock() -> None:
        with suppress(CheckpointError):  # a process that lives holds it, as far as it says
            require_free(tmp_path)

    never_refused(tmp_path / NAME, damage.of_json(state, count=MANY), read_state)
    run = tmp_path / "run.json"
    never_refused(run, damage.of_json(facts, count=MANY), lambda: resume._read_facts(run))
    never_refused(tmp_path / LOCK, damage.of_json(lock, count=MANY), read_lock)


def test_damaged_metrics_are_left_out_where_a_run_goes_on_and_named_where_they_are_drawn(tmp_path):
    lines = [
        {"step": 10, "epoch": 0, "loss": 9.5, "lr": 0.1, "images_per_s": 300.0},
        {"step": 20, "epoch": 1, "loss": 8.5, "verification": {"lfw": {"accuracy": 0.6}}},
    ]
    path = tmp_path / "metrics.jsonl"
    whole = "".join(f"{json.dumps(line)}\n" for line in lines).encode()
    mutations = [*damage.of_bytes(whole, count=MANY)]
    for odd in damage.of_values(lines, count=MANY):
        if isinstance(odd, list):
            mutations.append("".join(f"{json.dumps(line)}\n" for line in odd).encode())
    never_refused(path, iter(mutations), lambda: forget_after(path, 15))
    damage.assert_refused_by_name(path, iter(mutations), lambda: read_curves(path), ValueError)


@pytest.mark.slow
def test_a_damaged_configuration_of_a_checkpoint_is_refused_by_name(tmp_path):
    config = tiny.config(tmp_path, tmp_path).as_dict()
    saved = {section: config[section] for section in ("model", "data")}
    mutations = damage.of_json(saved, count=2 * MANY)
    path = tmp_path / "config.json"
    (tmp_path / ".metadata").touch()
    damage.assert_refused_by_name(
        path,
        mutations,
        lambda: open_weights(tmp_path, checked=False).architecture.create(),
        WeightsError,
    )


def test_a_damaged_list_of_identities_is_refused_by_name(tmp_path):
    people = identities.Identities(3, {"abc": np.array([0, 1])}, {2: "ann"})
    path = identities.write_identities(tmp_path, people)
    mutations = damage.of_json(people.as_dict(), count=MANY)
    damage.assert_refused_by_name(
        path,
        mutations,
        lambda: identities.read_identities(tmp_path),
        identities.IdentitiesError,
    )


def test_a_damaged_manifest_gives_no_names_and_a_damaged_cache_is_refused_by_name(tmp_path):
    tiny.write_set(tmp_path)
    index = open_index(tmp_path)
    rec = tmp_path / "train.rec"
    about = {"fingerprint": fingerprint(rec), "bytes": 9, "names": ["ann", "bob"]}
    never_refused(
        manifest_path(rec),
        damage.of_json(about, count=MANY),
        lambda: (read_names(rec), read_names(rec, damaged=True)),
    )
    rows = np.zeros((len(index), 4), np.float16)
    cache = write_embeddings(index, lambda done: [rows[done:]], teacher="t", embedding_dim=4)
    whole = cache.read_bytes()
    damage.assert_refused_by_name(
        cache,
        (
            content.ljust(4096) + whole[4096:]
            for content in damage.of_json(json.loads(whole[:4096]), count=MANY)
        ),
        lambda: open_embeddings(index, teacher="t"),
        EmbeddingCacheError,
    )


@needs_onnx
def test_a_damaged_network_is_refused_by_name(tmp_path):
    path = tmp_path / "teacher.onnx"
    write_onnx(path, torch.ones(3, 8))

    def read() -> None:
        network = open_network(path)
        network(torch.zeros(3, 3, tiny.SIZE, tiny.SIZE))

    mutations = damage.of_bytes(path.read_bytes(), count=MANY)
    damage.assert_refused_by_name(path, mutations, read, OnnxError)


@pytest.mark.slow
def test_a_damaged_configuration_file_is_refused_by_name(tmp_path):
    path = tmp_path / "config.py"
    text = (
        "from training.config import Config, DataConfig, RunConfig\n"
        "config = Config(data=DataConfig(train='a.rec', global_batch=64),\n"
        "    run=RunConfig(epochs=3, seed=12))\n"
    )

    def read() -> None:
        assert not math.isnan(load_config(path).optim.lr)

    mutations = damage.of_bytes(text.encode(), count=2 * MANY)
    damage.assert_refused_by_name(path, mutations, read, ConfigError)
