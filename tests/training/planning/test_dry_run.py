"""A dry run tells whether a run fits and what holds it up, and leaves no trace of itself."""

from __future__ import annotations

import io
import math
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch
from rich.console import Console

from facestream import USER_ERROR_EXIT_CODE, UserError
from pipeline.dali_loader import Batch, Loader
from tests.clock import Clock
from tests.ranks import run_ranks
from tests.training import tiny
from training.assembly import Assembly
from training.config import Config, ConfigError, override
from training.distributed import World
from training.loop import Trainer
from training.planning import dry_run as module
from training.planning.dry_run import dry_run
from training.planning.memory import Prediction
from training.planning.out_of_memory import OutOfMemoryError
from training.scored_sets import ScoredSet
from training.step.learning import create_network
from training.step.precision import choose_precision


@pytest.fixture
def config(data, tmp_path) -> Config:
    return override(tiny.config(data, tmp_path / "run"), ["data.threads=1"])


def rehearse(world: World, config: Config) -> int:
    return dry_run(config, world, choose_precision(world.device, "fp32"))


@pytest.mark.slow
def test_it_says_what_the_run_is_scored_on_and_how_often(world, config, capsys):
    sets = [ScoredSet("ijbc", lambda *_: pytest.fail("scored"), every=5, images=469_375)]
    precision = choose_precision(world.device, "fp32")
    config = override(config, ["eval.sets=[ijbc:images]"])
    assert dry_run(config, world, precision, sets=sets) == 0
    printed = capsys.readouterr().out
    assert "scored     ijbc: 469,375 images, every 5 epochs" in printed
    verification = re.search(r"│ verification +│ +([\d,]+) │", printed)
    assert int(verification[1].replace(",", "")) > 4 * 16 * 469_375 / 1e6, "embeddings count"


AWAY = ("fetched", "host", "disk")


@pytest.mark.slow
def test_it_ends_with_a_verdict_and_leaves_nothing_behind(
    world, config, tmp_path, monkeypatch, capsys
):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    assert rehearse(world, config) == 0
    printed = capsys.readouterr().out
    # These three are shown where centers are not on the device.
    parts = [name for name in Prediction.__dataclass_fields__ if name not in AWAY]
    for row in (*parts, "total", "available", "synthetic", "real"):
        assert re.search(rf"│ {row} +│ +[\d,]+ ", printed), row
    assert re.search(r"^fits: at its peak [\d,]+ of [\d,]+ MB a rank", printed, re.MULTILINE)
    assert re.search("^disk: a checkpoint takes 3 MB, at most 3 at once", printed, re.M)
    assert re.search("^the loader (keeps up|is the bottleneck)", printed, re.MULTILINE)
    assert f"output     {config.run.output}, which a dry run leaves as it is\n" in printed
    assert str(scratch) not in printed, "its own folder is nobody's business"
    for batches in ("synthetic", "real"):
        assert re.search(rf"^timing steps on {batches} batches: \d+$", printed, re.MULTILINE)
    left = [folder.name for folder in scratch.iterdir()]
    assert set(left) <= {"torchinductor_root"}, "what torch compiles it may keep"
    assert not Path(config.run.output).exists()


def test_what_will_not_fit_is_not_even_built(world, config, monkeypatch, capsys):
    monkeypatch.setattr(module, "least_available", lambda world: 1 << 20)
    monkeypatch.setattr(module, "assemble", None)
    assert rehearse(world, config) == USER_ERROR_EXIT_CODE
    verdict = capsys.readouterr().out.splitlines()[-1]
    assert verdict.startswith("does not fit")
    for setting in ("data.global_batch=12", "step.micro_batches=1", "head.sample_rate=1.0"):
        assert setting in verdict


def test_memory_that_runs_out_all_the_same_is_the_same_verdict(world, config, monkeypatch):
    def exhaust(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(module, "_measure", exhaust)
    message = r"asked for 2\.00 GiB.*Predicted were .*data\.global_batch=12"
    with pytest.raises(OutOfMemoryError, match=message):
        rehearse(world, config)


@pytest.fixture
def seconds_a_batch(monkeypatch) -> Callable[[float], None]:
    """Sets how long a real batch takes beside a step, which takes one second."""
    clock, train, stream = Clock(), Assembly.train, Loader.stream
    monkeypatch.setattr("training.reporting.stopwatch.time", clock)

    def step(self: Assembly, *arguments: object) -> object:
        clock.now += 1
        return train(self, *arguments)

    def set_seconds(seconds: float) -> None:
        def batches(self: Loader, epoch: int, step: int) -> Iterator[Batch]:
            with closing(stream(self, epoch, step)) as batches:
                for batch in batches:
                    clock.now += seconds
                    yield batch

        monkeypatch.setattr(Loader, "stream", batches)

    monkeypatch.setattr(Assembly, "train", step)
    return set_seconds


@pytest.mark.slow
def test_a_slow_loader_is_named_with_its_settings(world, config, seconds_a_batch, capsys):
    seconds_a_batch(1.5)
    hours = ["run.epochs=1000", "run.max_hours=1.5"]
    assert rehearse(world, override(config, hours)) == 0
    printed = capsys.readouterr().out
    steps = int(
        re.search(r"^time: about .* h for ([\d,]+) steps", printed, re.M)[1].replace(",", "")
    )
    assert steps % 1000 == 0
    assert f"time: about {steps * 2.5 / 3600:.1f} h for" in printed
    assert f", in {math.ceil(steps * 2.5 / 5400)} sessions of run.max_hours=1.5, " in printed
    assert "the loader is the bottleneck: without it steps are 2.5 times as fast" in printed
    assert "data.threads=1" in printed
    assert "data.decode" not in printed.split("bottleneck: ")[-1], "a CPU has no other"


@pytest.mark.slow
def test_a_loader_that_keeps_up_is_not_named(world, config, seconds_a_batch, capsys):
    seconds_a_batch(0.01)
    assert rehearse(world, config) == 0
    printed = capsys.readouterr().out
    assert "the loader keeps up" in printed
    assert "data.decode" not in printed.split("keeps up")[1]


def test_what_a_run_would_refuse_is_refused(world, config):
    with pytest.raises(ConfigError, match=r"head\.num_classes=3: .*labels up to 9"):
        rehearse(world, override(config, ["head.num_classes=3"]))
    with pytest.raises(ConfigError, match=r"data\.global_batch=12: expected a multiple"):
        rehearse(world, override(config, ["step.micro_batches=5"]))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (
            ["model.name=iresnet50"],
            r"start\.pth is of another network .* not have \d+ of \d+ tensors, such as layer1\.1\."
            r".* It holds iresnet10.* model\.name=iresnet50 is configured",
        ),
        (["model.name=mbf"], r"start\.pth has no tensor that fits .* It holds iresnet10"),
        (["run.init_from=nowhere.onnx"], r"run\.init_from=nowhere\.onnx does not exist"),
    ],
)
def test_weights_of_another_network_are_refused_before_data_are_read(
    world, config, tmp_path, monkeypatch, changes, complaint
):
    monkeypatch.setattr(module, "plan", None)
    torch.save(create_network(config).state_dict(), tmp_path / "start.pth")
    start = [f"run.init_from={tmp_path / 'start.pth'}"]
    with pytest.raises(UserError, match=complaint):
        rehearse(world, override(config, [*start, *changes]))


@pytest.mark.parametrize(
    ("named", "complaint"),
    [
        ("distill.teacher", r"distill\.teacher=nowhere\.onnx does not exist"),
        ("run.resume", r"run\.resume=nowhere\.onnx does not exist"),
        ("data.leave_out", r"data\.leave_out=nowhere\.onnx does not exist"),
        ("data.identity_map", r"data\.identity_map=nowhere\.onnx does not exist"),
        ("data.columns", r"data\.columns=nowhere\.onnx does not exist"),
    ],
)
def test_every_file_that_is_named_is_looked_at_before_anything_is_built(
    world, config, monkeypatch, named, complaint
):
    monkeypatch.setattr(module, "assemble", None)
    with pytest.raises(UserError, match=complaint):
        rehearse(world, override(config, [f"{named}=nowhere.onnx"]))


def test_a_folder_in_which_the_run_could_not_go_on_is_refused(world, config, monkeypatch, tmp_path):
    trainer = Trainer(config, world, precision=choose_precision(world.device, "fp32"))
    trainer.save()
    trainer.close()
    monkeypatch.setattr(module, "assemble", None)
    before = sorted(Path(config.run.output).rglob("*"))
    for change, complaint in (
        ("model.width=0.5", r"holds another run: its model\.width is 0\.25"),
        ("optim.momentum=0.5", r"other settings: optim\.momentum was 0\.9, is 0\.5"),
        ("run.resume=never", r"already holds this run and run\.resume=never"),
        (f"run.output={tmp_path}", r"is not empty .* holds no run"),
    ):
        with pytest.raises(UserError, match=complaint):
            rehearse(world, override(config, [change]))
    assert sorted(Path(config.run.output).rglob("*")) == before


@pytest.mark.slow
def test_it_says_where_the_run_would_begin(world, config, tmp_path, capsys):
    torch.save(create_network(config).state_dict(), tmp_path / "start.pth")
    start = override(config, [f"run.init_from={tmp_path / 'start.pth'}"])
    assert rehearse(world, start) == 0
    printed = capsys.readouterr().out
    assert f"start      backbone from {tmp_path / 'start.pth'}\nbegins     at step 0\n" in printed


@pytest.mark.slow
def test_ranks_rehearse_together_and_the_main_one_speaks(config, tmp_path, capfd):
    assert run_ranks(rehearse, config, world_size=2, folder=tmp_path) == [0, 0]
    printed = capfd.readouterr().out
    assert printed.count("memory, predicted") == printed.count("fits: ") == 1
    assert not Path(config.run.output).exists()


def test_a_bar_moves_while_steps_are_timed_where_somebody_watches():
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=100)
    assert list(module._shown(console, 3, "timing steps")) == [0, 1, 2]
    assert "timing steps" in shown.getvalue()
    assert "100%" in shown.getvalue()
