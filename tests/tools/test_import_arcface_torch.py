"""import_arcface_torch: its checkpoint is one that a run goes on from, with their numbers."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models import Architecture
from tests.commands import call_apart
from tests.models.small import DIM, SMALL, as_recognized, small
from tests.training import tiny
from tools.import_arcface_torch import import_arcface_torch, main
from training.arcface_torch.weights import ArcFaceTorchError, rows_of, trained
from training.assembly import create_step
from training.saving import checkpoint
from training.saving.files import faults, read_about
from training.saving.reading import open_weights
from training.step.backbone import unwrapped
from training.step.precision import choose_precision
from training.weights import imported_run

CLASSES, RANKS, STEP = 11, 3, 600
NETWORK = Architecture("iresnet10", embedding_dim=16, image_size=tiny.SIZE, options={"width": 0.25})


pytestmark = pytest.mark.usefixtures("world")


@pytest.fixture
def theirs(tmp_path) -> tuple[Path, nn.Module, Tensor]:
    """A folder of arcface_torch after a step, its backbone and its centers.

    Momentum is the gradient then, which for the centers is twice themselves.
    """
    torch.manual_seed(0)
    folder, network = tmp_path / "theirs", NETWORK.create()
    folder.mkdir()
    for parameter in trained(network).values():
        parameter.grad = torch.randn_like(parameter)
    centers = torch.randn(CLASSES, 16)
    sizes = [rows_of(CLASSES, rank=r, world_size=RANKS) for r in range(RANKS)]
    for rank, rows in enumerate(centers.split(sizes)):
        part = nn.Parameter(rows.clone())
        part.grad = part.detach() * 2
        groups = [{"params": network.parameters()}, {"params": [part]}]
        optimizer = torch.optim.SGD(groups, lr=0.0, momentum=0.9)
        optimizer.step()
        content = {
            "epoch": 3,
            "global_step": STEP,
            "state_dict_backbone": network.state_dict(),
            "state_dict_softmax_fc": {"weight": part.detach()},
            "state_optimizer": optimizer.state_dict(),
            "state_lr_scheduler": {},
        }
        torch.save(content, folder / f"checkpoint_gpu_{rank}.pt")
    return folder, network, centers


def test_a_run_goes_on_from_their_weights_and_momentum(theirs, tmp_path, world):
    folder, network, centers = theirs
    path = import_arcface_torch([folder], tmp_path / "out", num_classes=CLASSES)
    assert path.parents[1] == tmp_path / "out"
    assert faults(path) == []
    facts = read_about(path)["facts"]
    assert facts == {
        "image size": 32,
        "model.name": "iresnet10",
        "model.embedding_dim": 16,
        "model.width": 0.25,
        "number of classes": CLASSES,
        "head.subcenters": 1,
        "imported from": ["theirs"],
    }

    config = tiny.config(tmp_path, tmp_path)
    precision = choose_precision(world.device, "fp32")
    step, _ = create_step(config, world, num_classes=CLASSES, precision=precision)
    assert checkpoint.load(path, train_step=step) == STEP
    backbone = unwrapped(step.backbone)
    for key, value in network.state_dict().items():
        assert torch.equal(backbone.state_dict()[key], value), key
    named = dict(backbone.named_parameters())
    for name, parameter in trained(network).items():
        momentum = step.optimizer.state[named[name]]["momentum_buffer"]
        assert torch.equal(momentum, parameter.grad), name
    assert torch.equal(step.head.centers, centers)
    assert torch.equal(step.head.velocity, centers * 2)
    assert step.head.steps.item() == STEP
    images = torch.randn(2, 3, tiny.SIZE, tiny.SIZE)
    with torch.no_grad():
        assert torch.equal(backbone.eval()(images), network.eval()(images))


def test_a_backbone_alone_becomes_a_checkpoint_without_a_head(theirs, tmp_path, world, capsys):
    _, network, _ = theirs
    torch.save(network.state_dict(), tmp_path / "backbone.pth")
    path = import_arcface_torch([tmp_path / "backbone.pth"], tmp_path / "an out")
    message = capsys.readouterr().out
    assert f"fine-tune it  run.init_from='{path}'\n" in message, "fit for a shell"
    assert "iresnet10 with width=0.25 for 32 pixels, 16 features" in message
    assert "head          none" in message
    assert "momentum of the backbone: in none of these files, it starts at zero" in message
    assert "run.resume" not in message
    config = tiny.config(tmp_path, tmp_path)
    precision = choose_precision(world.device, "fp32")
    step, _ = create_step(config, world, num_classes=CLASSES, precision=precision)
    with pytest.raises(checkpoint.CheckpointError, match=r"Missing key.*head\."):
        checkpoint.load(path, train_step=step)


def test_a_folder_in_use_is_left_alone(theirs, tmp_path):
    output = tmp_path / "out"
    (output / "checkpoints").mkdir(parents=True)
    with pytest.raises(ArcFaceTorchError, match="out is not empty: name another folder"):
        import_arcface_torch([theirs[0]], output)
    assert list(output.rglob("*")) == [output / "checkpoints"]


@pytest.mark.slow
def test_the_command_imports(theirs, tmp_path):
    folder, _, _ = theirs
    done = call_apart(main, folder, "-o", "out", "--num-classes", CLASSES, folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "head          11 classes" in done.stdout
    assert f"run.resume=out/checkpoints/step_{STEP:09d}" in done.stdout


def test_mistakes_end_in_one_line_and_nothing_is_written(theirs, tmp_path, monkeypatch, capsys):
    folder, _, _ = theirs
    (folder / "checkpoint_gpu_1.pt").unlink()
    # This process is in one already.
    monkeypatch.setattr("tools.import_arcface_torch.joined_world", nullcontext)
    monkeypatch.setattr(sys, "argv", ["import", str(folder), "-o", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert capsys.readouterr().err == (
        "import_arcface_torch: the centers of rank 1 of 3 are missing: name the files of all "
        "ranks\n"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_any_network_becomes_a_checkpoint_that_is_what_it_was(name, tmp_path, capsys):
    """Whose options its configuration tells, for whoever trains on from it or teaches by it."""
    network = small(name).create()
    torch.save(network.state_dict(), tmp_path / "model.pt")
    path = import_arcface_torch([tmp_path / "model.pt"], tmp_path / "imported")
    saved = open_weights(path)
    assert saved.architecture == as_recognized(name)
    assert f"backbone      {as_recognized(name)}, {DIM} features" in capsys.readouterr().out
    for key, tensor in saved.network().state_dict().items():
        assert torch.equal(tensor, network.state_dict()[key]), key


def test_what_is_not_finished_has_another_name_and_is_in_nobodys_way(theirs, tmp_path, monkeypatch):
    folder, *_ = theirs
    output = tmp_path / "out"

    def full(*_: object) -> None:
        left = tmp_path / ".out.unfinished"
        assert list(left.glob("checkpoints/*"))  # written, but not under its name
        assert not output.exists()
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(imported_run.shutil, "move", full)
        with pytest.raises(OSError, match="No space left"):
            import_arcface_torch([folder], output)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["theirs"]
    (tmp_path / ".out.unfinished/checkpoints").mkdir(parents=True)  # as a kill leaves it
    assert faults(import_arcface_torch([folder], output)) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "theirs"]
