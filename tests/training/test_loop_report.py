"""What a run leaves behind of how good its network is: a report, pictures, more than curves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from evaluation.result import read_evaluation
from tests.training import tiny
from training.config import Config, override
from training.distributed import World
from training.faults.agreement import Reason
from training.faults.stops import Stopped
from training.frozen.model import open_model
from training.loop import Trainer
from training.scored_sets import open_sets
from training.step.precision import choose_precision


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    return tiny.write_pairs(tmp_path_factory.mktemp("sets") / "blocks.bin")


def with_sets(config: Config, world: World) -> Trainer:
    precision = choose_precision(world.device, "fp32")
    sets = open_sets(config, world, precision)
    return Trainer(config, world, precision=precision, sets=sets)


@pytest.mark.slow
def test_a_finished_run_leaves_a_report_of_its_last_state(data, world, tmp_path, pairs, capsys):
    config = override(
        tiny.config(data, tmp_path / "run"),
        [f"eval.sets=[{pairs},{pairs}+blur]", "eval.every={blocks+blur: 2}"],
    )
    trainer = with_sets(config, world)
    scores = trainer.run()
    trainer.reporter.sum_up(trainer.last_checkpoint)
    assert f"report       {tmp_path}/run/report.html" in capsys.readouterr().out
    found = read_evaluation(tmp_path / "run" / "results.json")
    assert [(one.set, one.model) for one in found.results] == [
        ("blocks", "run@15"),
        ("blocks+blur", "run@15"),
    ]
    [model] = found.models
    assert model.source == f"{trainer.last_checkpoint}"
    assert open_model(trainer.last_checkpoint, device=world.device, dtype=torch.float32).digest == (
        model.digest
    )
    for one in found.results:
        accuracy = one.figures["accuracy"]
        assert accuracy.value == scores[one.set]["accuracy"]
        assert accuracy.low < accuracy.high
        assert one.interval["draws"] == 1000
    folder = str(trainer.reporter.tensorboard_path)
    events = EventAccumulator(folder, size_guidance={"histograms": 0}).Reload()
    tags = events.Tags()
    assert {"verification_blocks/roc", "verification_blocks/scores"} <= set(tags["images"])
    assert "verification_blocks_blur/genuine" in tags["histograms"]
    assert [e.step for e in events.Histograms("verification_blocks_blur/genuine")] == [0, 10, 15]
    assert (trainer.reporter.tensorboard_path / "projector" / "faces.png").exists()
    plugins = {
        value.tag
        for path in trainer.reporter.tensorboard_path.glob("events*")
        for event in EventFileLoader(str(path)).Load()
        for value in event.summary.value
        if value.metadata.plugin_data.plugin_name == "hparams"
    }
    assert len(plugins) == 3, "experiment, begin and end of the session"


@pytest.mark.slow
def test_a_run_that_is_stopped_leaves_a_report_of_what_was_found(data, world, tmp_path, pairs):
    """And not one face where pictures are not wanted."""
    config = override(
        tiny.config(data, tmp_path / "run"), [f"eval.sets=[{pairs}]", "log.pictures=false"]
    )
    trainer = with_sets(config, world)
    requested = trainer._stops.requested
    trainer._stops.requested = lambda: (
        Reason("a test", 0) if trainer.steps_done == 7 else requested()
    )
    with pytest.raises(Stopped):
        trainer.run()
    found = read_evaluation(tmp_path / "run" / "results.json")
    assert [(one.set, one.model) for one in found.results] == [("blocks", "run@5")]
    assert "data:image/jpeg" not in (tmp_path / "run" / "report.html").read_text()
    assert "data/images" not in str(
        EventAccumulator(str(trainer.reporter.tensorboard_path)).Reload().Tags()
    )
