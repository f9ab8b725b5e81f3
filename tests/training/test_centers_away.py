"""Runs whose centers are kept elsewhere: the same bits, the same checkpoints, room first."""

from __future__ import annotations

import pytest
import torch

from heads.rows.fetcher import RowFetcher
from tests.training import tiny
from training.config import Config, ConfigError, override
from training.distributed import World
from training.faults.agreement import Reason
from training.faults.stops import Stopped
from training.loop import Trainer
from training.saving import checkpoint
from training.step.precision import choose_precision

HEAD = ["head.sample_rate=0.5", "data.weights=[1.4]"]


def build(config: Config, world: World) -> Trainer:
    return Trainer(config, world, precision=choose_precision(world.device, "fp32"))


def state(trainer: Trainer) -> list[torch.Tensor]:
    step = trainer.step
    return [*step.backbone.state_dict().values(), *step.head.state_dict().values()]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(map(torch.equal, one, other))


@pytest.fixture(scope="module")
def finished(data, world, tmp_path_factory) -> list[torch.Tensor]:
    """A run with its centers on the device, and images that come more than once an epoch."""
    output = tmp_path_factory.mktemp("runs") / "device"
    trainer = build(override(tiny.config(data, output), HEAD), world)
    trainer.run()
    return state(trainer)


@pytest.fixture
def late(monkeypatch) -> list[int]:
    """Steps whose rows were not there when their forward came."""
    late, fetch = [], RowFetcher.fetch

    def noted(fetcher, labels, sampling, *, step):
        before = fetcher._coming.copy()
        fetch(fetcher, labels, sampling, step=step)
        if step not in before or fetcher._current is not before[step].job.result():
            late.append(step)

    monkeypatch.setattr(RowFetcher, "fetch", noted)
    return late


@pytest.mark.parametrize("place", ["host", "disk"])
def test_a_run_ends_in_the_same_bits_and_knows_what_comes(
    place, data, world, tmp_path, finished, late
):
    """Through the ends of epochs; only the first step finds nothing announced."""
    trainer = build(
        override(tiny.config(data, tmp_path / "run"), [*HEAD, f"head.place={place}"]), world
    )
    trainer.run()
    assert same(state(trainer), finished)
    assert late == [0]
    assert not list(tmp_path.glob("*.*")), "nothing but the run"


@pytest.mark.parametrize("places", [("disk", "host"), ("host", "device"), ("device", "disk")])
def test_a_run_resumes_in_another_place(places, data, world, tmp_path, finished, late):
    """Stopped in the middle of an epoch, between two steps that are announced."""
    first, second = (
        override(tiny.config(data, tmp_path / "run"), [*HEAD, f"head.place={place}"])
        for place in places
    )
    trainer = build(first, world)
    after = iter([None] * 7)  # of the seventh step
    trainer._stops.requested = lambda: next(after, Reason("a test", 0))
    with pytest.raises(Stopped):
        trainer.run()
    late.clear()
    resumed = build(second, world)
    assert resumed.steps_done == 7
    resumed.run()
    assert same(state(resumed), finished)
    assert late == ([] if places[1] == "device" else [7])


def test_rows_on_a_disk_are_saved_without_a_copy(data, world, tmp_path, monkeypatch):
    """Which would not fit either: training waits instead."""
    config = override(tiny.config(data, tmp_path / "run"), ["head.place=disk"])
    trainer = build(config, world)
    trainer._saver.reserve()
    copied = trainer._saver._copy._memory
    assert not [path for path in copied if path[-1] in ("centers", "velocity")]
    path = trainer._saver.save(0)
    assert path in checkpoint.checkpoints(trainer.output), "when it returns"
    trainer.close()


def test_a_graph_of_the_whole_step_is_refused(data, tmp_path):
    config = tiny.config(data, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"step.cuda_graph.*off or head with head.place=host"):
        override(config, ["head.place=host", "step.cuda_graph=full"])
