"""Experiments of many short trainings: what they are trained on, and that a call does what is
missing."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

import numpy as np
import pytest

from benchmarks import kept_faces
from benchmarks.cells import do_missing, finished, mean_and_deviation
from benchmarks.kept_faces import SIZE, Drawn, drawn_faces, real_faces
from benchmarks.short_training import configured, train
from evaluation.pair_set import write_bin
from models import MODELS, OWN_MODELS
from pipeline.records.write_set import write_set
from synthetic import encode_jpeg, make_pairs, render
from training.config import HeadConfig


@pytest.fixture(autouse=True)
def _no_trace_in_other_tests() -> Iterator[None]:
    """A short training makes its network known by name."""
    before = [(registry, dict(registry)) for registry in (MODELS, OWN_MODELS)]
    yield
    for registry, names in before:
        registry.clear()
        registry.update(names)


@pytest.fixture
def faces(tmp_path, monkeypatch):
    """Eight people, and four others in pairs; drawn in this process, whose cores are few."""
    monkeypatch.setattr(kept_faces.multiprocessing, "get_context", lambda kind: _InProcess)
    return drawn_faces(tmp_path / "faces", Drawn("drawn", identities=32, images=4, pairs=40))


class _InProcess:
    """What stands for a pool of processes."""

    class Pool:
        def __init__(self, count: int) -> None:
            assert count >= 1

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def imap(self, draw, shots, chunksize):
            assert chunksize >= 1
            return map(draw, shots)


@pytest.mark.slow
def test_drawn_faces_are_those_of_their_labels_and_pairs_of_others(faces, tmp_path):
    assert faces.images.shape == (128, SIZE, SIZE, 3)
    for place in (0, 5, 127):
        who = int(faces.labels[place])
        np.testing.assert_array_equal(faces.images[place], render(who, place % 4, size=SIZE))
    listed, same = make_pairs(range(32, 48), pairs=40, seed=0)
    np.testing.assert_array_equal(faces.same, same)
    np.testing.assert_array_equal(faces.pairs[7], render(*listed[7], size=SIZE))
    assert sorted(path.name for path in (tmp_path / "faces").iterdir()) == [
        "drawn.npy",
        "drawn_pairs.npy",
    ]


def test_real_faces_are_those_of_the_record_file_made_smaller(tmp_path):
    source = tmp_path / "set"
    shots = [(who, image) for who in (3, 4) for image in range(2)]
    encoded = [encode_jpeg(render(*shot, size=96)) for shot in shots]
    write_set(source, [[(7.0, image) for image in encoded[:2]], [(9.0, encoded[2])]])
    write_bin(source / "val.bin", encoded, [True, True])
    found = real_faces(source, tmp_path / "faces")
    assert found.images.shape == (3, SIZE, SIZE, 3)
    assert found.pairs.shape == (4, SIZE, SIZE, 3)
    assert found.labels.tolist() == [0, 0, 1]
    assert found.same.tolist() == [True, True]
    assert abs(found.images[2] - render(*shots[2], size=SIZE).astype(float)).mean() < 8
    np.testing.assert_array_equal(found.pairs[:3], found.images)


@pytest.mark.slow
def test_a_training_repeats_itself_and_is_another_at_another_seed(faces):
    head = HeadConfig(sample_rate=0.5)
    first, again, other = (
        train(configured(head, seed=seed, epochs=2), faces) | {"seconds": 0} for seed in (0, 0, 1)
    )
    assert first == again != other
    assert 0 <= first["tar"] <= 1
    assert 0 <= first["accuracy"] <= 1
    assert math.isfinite(first["loss"])


def test_an_interrupted_call_goes_on_with_the_next_cell(tmp_path):
    results, done = tmp_path / "found.jsonl", []
    wanted = [{"rate": rate, "seed": seed} for rate in (1.0, 0.1) for seed in (0, 1)]

    def measure(rate: float, seed: int) -> dict[str, float]:
        done.append((rate, seed))
        if len(done) == 3:
            raise KeyboardInterrupt
        return {"accuracy": rate + seed}

    with pytest.raises(KeyboardInterrupt):
        list(do_missing(measure, wanted, results))
    assert len(finished(results)) == 2
    assert len(list(do_missing(measure, wanted, results, at_most=1))) == 1
    assert [*map(len, (list(do_missing(measure, wanted, results)), finished(results)))] == [1, 4]
    assert done == [(1.0, 0), (1.0, 1), (0.1, 0), (0.1, 0), (0.1, 1)]
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert all(line["code"] and line["torch"] and line["cpu"] for line in lines)
    assert mean_and_deviation(lines[:2], "accuracy") == (1.5, pytest.approx(math.sqrt(0.5)))
