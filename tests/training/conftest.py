"""What tests of training share: a set to train on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training import tiny


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return tiny.write_set(tmp_path_factory.mktemp("data"))
