"""Saved weights are the same whatever they are in, and what is none of them is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from models import create_model
from tests.training import tiny
from tests.training.saved import save
from training.assembly import create_step
from training.config import Config, override
from training.distributed import World, join_world, leave_world
from training.named_files import check_named_files
from training.saving import resume
from training.saving.files import CheckpointError, complete, read_about
from training.saving.names import BACKBONE, CENTERS, HEAD, VELOCITY
from training.saving.reading import SavedFile, open_weights
from training.saving.weight_file import WeightsError
from training.step.backbone import unwrapped
from training.step.precision import choose_precision

CLASSES = 7


@pytest.fixture(scope="module", autouse=True)
def world():
    joined = join_world("cpu")
    yield joined
    leave_world()


class Run(NamedTuple):
    config: Config
    folder: Path
    best: Path  # of step 5
    newest: Path  # of step 8
    backbone: dict[str, Tensor]
    centers: Tensor


@pytest.fixture(scope="module")
def run(tmp_path_factory, world: World) -> Run:
    folder = tmp_path_factory.mktemp("run")
    config = tiny.config(folder / "data", folder / "run")
    precision = choose_precision(world.device, "fp32")
    step, _ = create_step(config, world, num_classes=CLASSES, precision=precision)
    scores = {"pairs": {"accuracy": 0.75}}
    best = save(folder / "run", step=5, config=config, train_step=step, scores=scores)
    newest = save(folder / "run", step=8, config=config, train_step=step)
    state = unwrapped(step.backbone).state_dict()
    return Run(config, folder / "run", best, newest, state, step.head.centers.detach())


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], expected[name]) for name in expected
    )


@pytest.mark.parametrize("where", ["", "@best", "@5", "@step_000000008", "the checkpoint"])
def test_a_run_is_opened_at_the_checkpoint_that_is_asked_for(run, where):
    given = str(run.best) if where == "the checkpoint" else f"{run.folder}{where}"
    saved = open_weights(given)
    assert saved.path == (run.best if where in ("@best", "@5", "the checkpoint") else run.newest)
    assert saved.config == run.config
    assert saved.about["step"] == int(saved.path.name[-9:])
    assert same(saved.backbone().tensors, run.backbone)
    assert same(dict(saved.network().state_dict()), run.backbone)
    (note,) = saved.notes or ("",)
    assert (
        note
        == {
            "": f"{run.folder}: step_000000008, its newest checkpoint",
            "@best": f"{run.folder}@best: step_000000005, with a mean accuracy of 0.7500",
            "@5": f"{run.folder}@5: step_000000005, with a mean accuracy of 0.7500",
            "@step_000000008": f"{run.folder}@step_000000008: step_000000008",
            "the checkpoint": "",
        }[where]
    )


def test_sections_are_read_by_the_names_they_were_saved_under(run):
    saved = open_weights(run.folder)
    head = saved.tensors(HEAD)
    assert torch.equal(head[CENTERS], run.centers)
    assert saved.shapes()[CENTERS] == run.centers.shape == saved.shapes()[VELOCITY]
    assert all(name.startswith("head.") for name in head)
    assert len(saved.tensors(BACKBONE, HEAD)) == len(head) + len(run.backbone)


def test_without_a_process_group_it_reads_the_same(run, monkeypatch):
    monkeypatch.setattr("training.saving.reading.dist.is_initialized", lambda: False)
    assert same(open_weights(f"{run.folder}@best").backbone().tensors, run.backbone)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_a_file_is_the_same_weights(run, tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file = pytest.importorskip("safetensors.torch").save_file
        save_file({name: tensor.contiguous() for name, tensor in run.backbone.items()}, path)
    else:
        torch.save({"model": run.backbone}, path)
    saved, trained = open_weights(path), open_weights(run.folder)
    assert isinstance(saved, SavedFile)
    assert saved.architecture == trained.architecture
    assert same(dict(saved.network().state_dict()), dict(trained.network().state_dict()))
    assert saved.tensors(HEAD) == {}
    backbone = {name: shape for name, shape in trained.shapes().items() if "backbone." in name}
    assert saved.shapes() == backbone


@pytest.mark.parametrize("name", ["model.pt", "backbone.pth", "checkpoint_gpu_0.pt"])
def test_a_folder_that_arcface_torch_left_is_the_backbone_in_it(run, tmp_path, name):
    content = run.backbone
    if name.startswith("checkpoint"):
        other = {key: torch.zeros_like(tensor) for key, tensor in run.backbone.items()}
        torch.save(other, tmp_path / "model.pt")  # of an earlier epoch: the newer one is taken
        content = {"epoch": 1, "state_dict_backbone": run.backbone}
        torch.save(content, tmp_path / "checkpoint_gpu_1.pt")
    torch.save(content, tmp_path / name)
    saved = open_weights(tmp_path)
    assert same(saved.backbone().tensors, run.backbone)
    assert saved.notes[0] == f"{tmp_path}: the backbone of {name}"


def test_what_is_not_there_is_refused_with_what_there_is(run, tmp_path):
    with pytest.raises(WeightsError, match=r"none does not exist: expected .*RUN@best"):
        open_weights(tmp_path / "none")
    with pytest.raises(WeightsError, match="is there, but holds no checkpoint"):
        open_weights(tmp_path)
    there = r"@7: expected best or the step .*, there are step_000000005, step_000000008"
    with pytest.raises(CheckpointError, match=there):
        open_weights(f"{run.folder}@7")
    with pytest.raises(CheckpointError, match="@last: expected best or the step"):
        open_weights(f"{run.folder}@last")
    with pytest.raises(CheckpointError, match="@best: none of its checkpoints was verified"):
        open_weights(f"{tmp_path}@best")


def test_a_path_with_an_at_sign_stays_a_path(run, tmp_path):
    (tmp_path / "run@best").symlink_to(run.folder)
    assert open_weights(tmp_path / "run@best").path.name == "step_000000008"


def test_a_damaged_checkpoint_is_refused(run, tmp_path):
    copy = tmp_path / "step_000000005"
    copy.mkdir()
    for file in run.best.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    shard = next(copy.glob("*.distcp"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    with pytest.raises(WeightsError, match=r"is damaged: .*does not have its checksum"):
        open_weights(copy)


def test_a_configuration_of_another_version_is_read_and_the_difference_named(run, tmp_path):
    copy = tmp_path / "step_000000005"
    copy.mkdir()
    (copy / ".metadata").touch()
    values = run.config.as_dict()
    values["head"]["forgotten"] = values["head"].pop("subcenters")
    (copy / "config.json").write_text(json.dumps(values))
    saved = open_weights(copy, checked=False)
    assert saved.config == run.config
    assert saved.notes == (
        "settings that no longer exist: head.forgotten=1",
        "settings newer than it, at their defaults: head.subcenters",
    )


def test_the_network_of_a_checkpoint_comes_with_its_options(run, tmp_path):
    (tmp_path / ".metadata").touch()
    now = override(run.config, ["model.options={width: 0.5}", "model.width=1"])
    values = now.as_dict()
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert open_weights(tmp_path, checked=False).architecture == now.architecture
    del values["model"]["options"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert open_weights(tmp_path, checked=False).architecture.options["width"] == 1


def test_a_run_with_a_loss_of_its_users_own_is_read_without_it(run, tmp_path):
    (tmp_path / ".metadata").touch()
    values = run.config.as_dict()
    values["head"] |= {"loss": "taperface", "loss_args": {"slope": 2}}
    (tmp_path / "config.json").write_text(json.dumps(values))
    saved = open_weights(tmp_path, checked=False)
    assert (saved.config.head.loss, saved.architecture.name) == ("taperface", "iresnet10")


def test_a_checkpoint_of_a_newer_format_is_refused_by_name(run, tmp_path):
    copy = tmp_path / "step_000000005"
    copy.mkdir()
    about = json.loads((run.best / "about.json").read_text())
    assert about["format"] == 1
    for newer, name in ((2, "a newer version, in the format 2"), ("x", "no readable about")):
        (copy / "about.json").write_text(json.dumps(about | {"format": newer}))
        with pytest.raises(CheckpointError, match=name):
            read_about(copy)


def test_weights_of_a_newer_format_are_refused_wherever_they_are_taken(run, tmp_path):
    copy = tmp_path / "step_000000005"
    documents = {"config.json": json.loads((run.best / "config.json").read_text())}
    about = json.loads((run.best / "about.json").read_text())
    copy.mkdir()
    for file in (*run.best.glob("*.distcp"), run.best / ".metadata"):
        (copy / file.name).write_bytes(file.read_bytes())
    complete(copy, documents=documents | {"about.json": about | {"format": 2}}, digests={})
    with pytest.raises(CheckpointError, match="reads those up to 1: install that version"):
        open_weights(copy)


@pytest.mark.slow
def test_another_network_than_the_configuration_says_is_refused(run, monkeypatch):
    saved = open_weights(run.folder)
    other = create_model("iresnet18", embedding_dim=16, width=0.25, image_size=tiny.SIZE)
    monkeypatch.setattr("models.Architecture.create", lambda self: other)
    with pytest.raises(WeightsError, match="does not hold the iresnet10 that its config"):
        saved.network()


def test_settings_take_the_same_forms(run):
    for setting in ("run.init_from", "run.resume"):
        given = {"run.init_from": "", "run.resume": "auto", setting: f"{run.folder}@best"}
        values = run.config.as_dict()
        values["run"] |= {name.partition(".")[2]: value for name, value in given.items()}
        config, _ = Config.from_dict(values)
        check_named_files(config, setting)
    elsewhere = Path(config.run.output).parent / "elsewhere"
    assert resume.choose_checkpoint(elsewhere, config, facts={}) == run.best
