"""What tests of training share: a world of one rank on the CPU, and a set to train on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training import tiny
from training.distributed import join_world, leave_world


@pytest.fixture(scope="module")
def world():
    yield join_world("cpu")
    leave_world()


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return tiny.write_set(tmp_path_factory.mktemp("data"))
