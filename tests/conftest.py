"""What all tests share: those that need a GPU or DALI are skipped, with the reason, without it."""

import io
import os
import signal
import tempfile
from collections import Counter

# Before torch is imported, here and in what tests start: its threads wait by spinning, so that tiny
# tensors take six times the CPU, and twenty times as long beside other work.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell's `make test &` leaves Ctrl-C ignored, here and in the runs that tests send it to.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# What torch compiled and keeps is wrong where it is held to fewer of the CPU's instruction sets.
if held_to := os.environ.get("ATEN_CPU_CAPABILITY"):
    folder = os.path.join(tempfile.gettempdir(), f"torchinductor_{os.getuid()}_{held_to}")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", folder)

import pathlib
import sys
from pathlib import Path

import hypothesis
import pytest
import torch

from pipeline import dali
from tools.make_synthetic import make_synthetic
from training.distributed import join_world, leave_world

# Paths of Python 3.10 hold functions of os and io, and would not meet what a test puts there.
if sys.version_info < (3, 11):
    for name, function in list(vars(pathlib._NormalAccessor).items()):
        for module in (os, io):
            if function is getattr(module, name, None):
                setattr(
                    pathlib._NormalAccessor,
                    name,
                    staticmethod(lambda *a, _m=module, _n=name, **k: getattr(_m, _n)(*a, **k)),
                )

# Deadlines would make tests fail where the machine is busy.
# A landing must not hang on an example that nobody has seen before: that is for runs by hand.
hypothesis.settings.register_profile("facestream", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("facestream")


def pytest_configure(config: pytest.Config) -> None:
    """Matplotlib keeps its list of this machine's fonts where Triton's kernels are kept: who makes
    it in the middle of a test says so in that test's output, where it takes long."""
    if config.pluginmanager.has_plugin("cacheprovider"):
        os.environ.setdefault("MPLCONFIGDIR", str(config.cache.mkdir("matplotlib")))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = {
        "gpu": None if torch.cuda.is_available() else "no CUDA device",
        "dali": None if dali.is_installed() else "no NVIDIA DALI",
    }
    # The longest files begin first, so that processes beside one another end together.
    seconds: Counter[Path] = Counter()
    for item in items:
        if slow := item.get_closest_marker("slow"):
            seconds[item.path] += slow.kwargs.get("seconds", 1)
    items.sort(key=lambda item: -seconds[item.path])
    for item in items:
        # Processes that share the tests must collect the same ones.
        assert " at 0x" not in item.nodeid, f"{item.nodeid} has an address: give its parameters ids"
        for marker, reason in missing.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory):
    """Sidecars of read-only test data go to a folder of this session."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _own_threads():
    """A command that a test calls in this process may ask for other threads: for itself alone."""
    before = torch.get_num_threads()
    yield
    if torch.get_num_threads() != before:
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def world():
    """Of one rank, this process, on the CPU."""
    yield join_world("cpu")
    leave_world()


@pytest.fixture(scope="session")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.rec, 8 people with 8 drawn faces of 64 pixels each, and val.bin."""
    folder = tmp_path_factory.mktemp("faces")
    make_synthetic(folder, identities=8, images=8, pairs=20, seed=0, size=64)
    return folder


@pytest.fixture(autouse=True)
def _signals_as_before():
    """A command that ends in this process leaves signals ignored, as a process that ends should."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)
