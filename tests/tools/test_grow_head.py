"""grow_head: old rows stay bit for bit, new ones follow them, and a run goes on from it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from heads.centers import initial_centers
from pipeline.dali_loader import Loader
from tests.commands import call_apart
from tests.training import tiny
from tests.training.people import build, save_run, with_data, write_people
from tests.training.saved import save
from tools.grow_head import grow_head, main
from training.config import Config, override
from training.distributed import World
from training.saving import checkpoint
from training.saving.files import faults, read_about
from training.saving.metadata import read_metadata
from training.saving.weight_file import WeightsError
from training.step.backbone import unwrapped
from training.step.optim import set_learning_rate
from training.step.precision import choose_precision
from training.weights.warm_start import open_init_from, warm_start

OLD, NEW = ("ann", "bob", "cyd"), ("eve", "fay")


@pytest.fixture(scope="module")
def old(tmp_path_factory) -> Path:
    return write_people(tmp_path_factory.mktemp("old"), OLD)


@pytest.fixture(scope="module")
def new(tmp_path_factory) -> Path:
    return write_people(tmp_path_factory.mktemp("new"), NEW)


@pytest.fixture(scope="module")
def trained(old, world, tmp_path_factory):
    """(checkpoint, its step, its configuration) of a run on the old people."""
    config = tiny.config(old, tmp_path_factory.mktemp("runs") / "old")
    return *save_run(config, world), config


@pytest.fixture(scope="module")
def grown(trained, new, world, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("grown") / "out"
    return grow_head(trained[0].parent.parent, new, output, init="mean", world=world)


def start(config: Config, world: World, init_from: Path):
    step, data = build(config, world)
    precision = choose_precision(world.device, "fp32")
    config = replace(config, run=replace(config.run, init_from=str(init_from)))
    lines = warm_start(
        config, world, open_init_from(config), step=step, data=data, precision=precision
    )
    return step, data, lines


def test_old_rows_are_as_they_were_and_new_ones_have_no_momentum(
    trained, grown, old, new, world, tmp_path
):
    """In the checkpoint itself, read as a run of both sets would resume it."""
    _, source, config = trained
    step, _ = build(with_data(config, old, new, output=tmp_path), world)
    assert not faults(grown)
    assert checkpoint.load(grown, train_step=step) == 3
    head, theirs = step.head, source.head
    assert torch.equal(head.centers[:3], theirs.centers)
    assert torch.equal(head.velocity[:3], theirs.velocity)
    assert not head.velocity[3:].any()
    norm = theirs.centers.norm(dim=1).mean()
    torch.testing.assert_close(head.centers[3:].norm(dim=1), norm.expand(2))
    backbone = unwrapped(step.backbone).state_dict()
    for name, tensor in unwrapped(source.backbone).state_dict().items():
        assert torch.equal(backbone[name], tensor), name


def test_what_it_says_of_itself_is_right(trained, grown, old, new, world, tmp_path):
    _, data = build(with_data(trained[2], old, new, output=tmp_path), world)
    facts = read_about(grown)["facts"]
    assert facts["dataset"] == data.fingerprint
    assert facts["number of classes"] == 5
    config = json.loads((grown / "config.json").read_text())
    assert config["data"]["train"] == [str(old), str(new)]
    assert config["head"]["num_classes"] is None


def test_a_run_takes_it_whole_and_trains(trained, grown, old, new, world, tmp_path):
    """The same as it would take the old one and start new people itself; then the loss falls."""
    before, source, config = trained
    begun = with_data(config, old, new, output=tmp_path)
    step, data, messages = start(begun, world, grown)
    assert torch.equal(step.head.centers[:3], source.head.centers)
    assert messages[1].startswith("5 of 5 centers taken")
    directly, _, _ = start(begun, world, before)
    # The tool computes in what the device is fast in, this run in float32.
    torch.testing.assert_close(step.head.centers, directly.head.centers, rtol=0, atol=0.02)
    stream = Loader(
        data.records, global_batch=10, image_size=tiny.SIZE, device=world.device
    ).stream(0)
    lr, losses = set_learning_rate(step.optimizer, 0.05), []
    for _ in range(10):
        images, labels, *_ = next(stream)
        losses.append(step(images, labels, lr, lambda phase: None).loss.item())
    assert losses[-1] < losses[0]


def test_at_random_they_start_as_in_a_new_head(trained, new, world, tmp_path):
    source, _, config = trained
    output = grow_head(source, new, tmp_path / "out", init="random", world=world)
    both = with_data(config, Path(config.data.train), new, output=tmp_path / "run")
    step, _, _ = start(both, world, output)
    assert torch.equal(step.head.centers[3:], initial_centers(3, 2, 16, seed=config.run.seed))


@pytest.mark.slow
def test_it_grows_again_and_again(trained, grown, old, new, world, tmp_path, capsys):
    _, source, config = trained
    third = write_people(tmp_path / "third", ("gus", "ann"))
    output = grow_head(grown, third, tmp_path / "out", init="mean", world=world)
    assert "1 names, such as ann, are in both sets" in capsys.readouterr().out
    begun = with_data(config, old, new, third, output=tmp_path / "run")
    step, _, messages = start(begun, world, output)
    assert messages[1].startswith("7 of 7 centers taken")
    assert torch.equal(step.head.centers[:3], source.head.centers)


def test_neighbors_are_searched_again_and_expectations_stay(old, new, world, tmp_path):
    """A table of the old classes alone would name no new one, and fits no head of all."""
    settings = ["head.sample_rate=0.5", "head.hard_negatives=0.5", "head.neighbors=2"]
    settings.append("head.expectation_margin=0.2")
    config = override(tiny.config(old, tmp_path / "old"), settings)
    _, source = save_run(config, world)
    source.head.expectations.fill_(0.5)
    source.head.neighbors.ids.fill_(1)
    saved = save(tmp_path / "old", step=4, config=config, train_step=source)
    assert any("neighbors" in name for name in read_metadata(saved).state_dict_metadata)
    output = grow_head(saved, new, tmp_path / "out", init="random", world=world)
    assert not any("neighbors" in name for name in read_metadata(output).state_dict_metadata)
    step, _ = build(with_data(config, old, new, output=tmp_path / "both"), world)
    assert checkpoint.load(output, train_step=step) == 4
    assert torch.equal(step.head.expectations[:3], source.head.expectations)
    assert not step.head.expectations[3:].any()
    assert (step.head.neighbors.ids == -1).all()


def test_where_nothing_says_whose_the_rows_are_they_stay_in_order(old, new, world, tmp_path):
    source, step = save_run(tiny.config(old, tmp_path / "old"), world, known=False)
    output = grow_head(source, new, tmp_path / "out", init="mean", world=world)
    begun = with_data(tiny.config(old, tmp_path), old, new, output=tmp_path / "run")
    taken, _, messages = start(begun, world, output)
    assert messages[1].startswith("5 of 5 centers taken, row by label")
    assert torch.equal(taken.head.centers[:3], step.head.centers)


def test_what_cannot_be_grown_is_refused(trained, grown, old, new, world, tmp_path):
    source, step, _ = trained
    backbone = tmp_path / "backbone.pth"
    torch.save(unwrapped(step.backbone).state_dict(), backbone)
    spare = override(tiny.config(old, tmp_path / "spare"), ["head.num_classes=8"])
    roomy, _ = save_run(spare, world)
    output = tmp_path / "out"
    for checkpoint_, rec, out, error, complaint in [
        (source, new, grown, WeightsError, "out exists: name another folder"),
        (source, old, output, WeightsError, "was trained on it, name another"),
        (backbone, new, output, WeightsError, "has no head to grow"),
        (tmp_path / "none", new, output, WeightsError, "does not exist"),
        (roomy, new, output, WeightsError, "has 8 rows, and 3 of them have labels"),
        (source, tmp_path / "none.rec", output, ValueError, r"none\.rec"),
    ]:
        with pytest.raises(error, match=complaint):
            grow_head(checkpoint_, rec, out, init="mean", world=world)
        assert not output.exists()


def test_nothing_is_left_under_its_name_when_the_disk_fails(trained, new, world, tmp_path):
    def fail(*args, **kwargs):
        raise OSError("no space left")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.distributed.checkpoint.FileSystemWriter.write_data", fail)
        with pytest.raises(WeightsError, match=r"out was not written: no space left\. Make room"):
            grow_head(trained[0], new, tmp_path / "out", init="random", world=world)
    assert not (tmp_path / "out").exists()
    grow_head(trained[0], new, tmp_path / "out", init="random", world=world)
    assert not faults(tmp_path / "out")


@pytest.mark.slow
def test_the_command_says_what_it_wrote_or_what_is_wrong(trained, new, tmp_path):
    done = call_apart(main, trained[0], "--rec", new, "-o", "out", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "wrote         out: 3 centers as they were, 2 new ones" in done.stdout
    assert "run.init_from=out" in done.stdout
    done = call_apart(main, trained[0], "--rec", new, "-o", "out", folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("grow_head: ")
    assert "Traceback" not in done.stderr
