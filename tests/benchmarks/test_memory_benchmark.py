"""What a run takes of a CPU's memory is what was predicted: never far under, nor far over."""

from __future__ import annotations

import sys

import pytest

from benchmarks import memory_prediction
from benchmarks.harness import in_own_process
from benchmarks.memory_prediction import BOUNDS, SMALL
from tools.make_synthetic import make_synthetic


@pytest.fixture(scope="module")
def faces(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("faces")
    make_synthetic(folder, identities=8, images=16, pairs=80, seed=0)
    return str(folder)


@pytest.mark.slow(seconds=10)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "case",
    [SMALL, (*SMALL, "head.num_classes=100000", "model.embedding_dim=512", "head.sample_rate=0.1")],
    ids=["activations", "centers"],
)
def test_a_run_takes_what_was_predicted(faces, case):
    settings = {"faces": faces, "overrides": list(case)}
    found = in_own_process(memory_prediction.__file__, settings, {})
    ratio = found["predicted"] / found["peak"]
    # The benchmark's bounds hold on two quiet cores. On one, or on a full machine, a checkpoint is
    # written beside other steps: 0.93 to 1.12 were seen. A part that is left out is far below.
    assert BOUNDS[0] - 0.1 <= ratio <= BOUNDS[1] + 0.1, found
