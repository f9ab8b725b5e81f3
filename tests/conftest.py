"""What all tests share: GPU tests are skipped, with the reason, where there is no GPU."""

import os

import hypothesis
import pytest
import torch

# Deadlines would make tests fail where the machine is busy.
# A landing must not hang on an example that nobody has seen before: that is for runs by hand.
hypothesis.settings.register_profile("facestream", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("facestream")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory):
    """Sidecars of read-only test data go to a folder of this session."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
