"""What tests of the stream share: a set to read."""

from __future__ import annotations

import pytest

from pipeline.records.index import RecordIndex
from tests.pipeline.numbered_images import write_set


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> RecordIndex:
    """50 images, each of a person of its own."""
    return write_set(tmp_path_factory.mktemp("set"))
