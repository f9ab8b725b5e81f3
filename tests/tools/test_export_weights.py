"""export_weights: what others load is what the run had, and it comes back bit for bit."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from models import create_model
from tests.commands import call_apart
from tests.training import tiny
from tests.training.saved import save
from tools.export_weights import export_arcface_torch, export_safetensors, main
from tools.import_arcface_torch import import_arcface_torch
from training.assembly import create_step
from training.config import Config
from training.frozen.card import KEY, read_card
from training.frozen.model import digest_of_weights
from training.saving import checkpoint
from training.saving.files import CheckpointError
from training.saving.reading import SavedCheckpoint
from training.saving.saver import Saver
from training.saving.weight_file import WeightsError
from training.step.precision import choose_precision
from training.step.schedules import create_schedule
from training.step.train_step import TrainStep

CLASSES, STEPS = 11, 2
SCORES = {"lfw": {"accuracy": 0.99783, "tar_at_far": 0.5}}


pytestmark = pytest.mark.usefixtures("world")


@pytest.fixture
def config(tmp_path) -> Config:
    return tiny.config(tmp_path / "private" / "faces" / "train.rec", tmp_path / "run")


def build(config: Config, world) -> TrainStep:
    precision = choose_precision(world.device, "fp32")
    return create_step(config, world, num_classes=CLASSES, precision=precision)[0]


def train(config: Config, world) -> tuple[TrainStep, Path]:
    """A run after two steps on noise, and its checkpoint."""
    step = build(config, world)
    lr = step.optimizer.param_groups[0]["lr"].fill_(0.1)
    for number in range(STEPS):
        torch.manual_seed(number)
        images = torch.randint(0, 256, (6, 3, tiny.SIZE, tiny.SIZE), dtype=torch.uint8)
        step(images, torch.randint(0, CLASSES, (6,)), lr, lambda phase: None)
    path = save(
        Path(config.run.output),
        step=STEPS,
        config=config,
        train_step=step,
        facts={"number of classes": CLASSES},
        scores=SCORES,
    )
    return step, path


@pytest.mark.slow
def test_by_way_of_three_ranks_of_arcface_torch_everything_comes_back(config, world, tmp_path):
    step, path = train(config, world)
    assert step.head.velocity.any()
    written = export_arcface_torch(path, tmp_path / "theirs", world_size=3, epoch=1)
    assert [file.name for file in written] == [
        "model.pt",
        "checkpoint_gpu_0.pt",
        "checkpoint_gpu_1.pt",
        "checkpoint_gpu_2.pt",
    ]
    network = create_model("iresnet10", embedding_dim=16, width=0.25, image_size=tiny.SIZE)
    network.load_state_dict(torch.load(written[0], weights_only=True), strict=True)

    back = import_arcface_torch([tmp_path / "theirs"], tmp_path / "back", num_classes=CLASSES)
    again = build(config, world)
    assert checkpoint.load(back, train_step=again) == STEPS
    for key, value in step.backbone.state_dict().items():
        assert torch.equal(again.backbone.state_dict()[key], value), key
    for before, after in zip(step.backbone.parameters(), again.backbone.parameters()):
        if before.requires_grad:
            momentum = step.optimizer.state[before]["momentum_buffer"]
            assert torch.equal(again.optimizer.state[after]["momentum_buffer"], momentum)
    for key, value in step.head.state_dict().items():
        assert torch.equal(again.head.state_dict()[key], value), key


def test_what_was_frozen_has_no_momentum_in_arcface_torchs_files(config, world, tmp_path):
    config = replace(config, optim=replace(config.optim, freeze=("layer1.*",)))
    step, path = train(config, world)
    written = export_arcface_torch(path, tmp_path / "theirs", world_size=1, epoch=1)
    saved = torch.load(written[1], weights_only=True)["state_optimizer"]["state"]
    for number, (name, parameter) in enumerate(step.backbone.named_parameters()):
        if name != "features.weight":  # which never learns
            momentum = saved[number]["momentum_buffer"]
            assert momentum.shape == parameter.shape
            assert bool(momentum.any()) == (not name.startswith("layer1."))


class PolynomialLRWarmup(torch.optim.lr_scheduler.LRScheduler):
    """arcface_torch's, after its warm-up: it multiplies the rate that it finds."""

    def __init__(self, optimizer: torch.optim.Optimizer, total_iters: int) -> None:
        self.total_iters = total_iters
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        rates = [group["lr"] for group in self.optimizer.param_groups]
        if self.last_epoch == 0:
            return rates
        left = self.total_iters - self.last_epoch
        return [rate * (left / (left + 1)) ** 2 for rate in rates]


def save_at(config: Config, step: TrainStep, number: int, **counters: int) -> Path:
    saver = Saver(Path(config.run.output), config=config, train_step=step, facts={})
    path = saver.save(number, counters=counters)
    saver.close()
    return path


def test_arcface_torch_goes_on_at_the_runs_own_rates(config, world, tmp_path):
    optim = replace(config.optim, warmup_epochs=0.0, power=2.0)
    config = replace(config, optim=optim)
    path = save_at(config, build(config, world), 4, steps_per_epoch=5)
    written = export_arcface_torch(path, tmp_path / "theirs", world_size=1, epoch=0)
    content = torch.load(written[1], weights_only=True)
    network = create_model("iresnet10", embedding_dim=16, width=0.25, image_size=tiny.SIZE)
    groups = [
        {"params": network.parameters()},
        {"params": [torch.nn.Parameter(torch.zeros(11, 16))]},
    ]
    optimizer = torch.optim.SGD(groups, lr=1.0, momentum=0.9)
    scheduler = PolynomialLRWarmup(optimizer, total_iters=15)
    optimizer.load_state_dict(content["state_optimizer"])
    scheduler.load_state_dict(content["state_lr_scheduler"])
    ours = create_schedule(optim, global_batch=12, epochs=3, steps_per_epoch=5)
    for number in range(4, 8):
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([ours(number)] * 2)
        assert {group["initial_lr"] for group in optimizer.param_groups} == {ours.peak}
        optimizer.step()
        scheduler.step()


@pytest.mark.slow
def test_a_rate_that_is_not_known_or_zero_is_said(config, world, tmp_path, capsys):
    step = build(config, world)
    for number, counters, message in [
        (4, {}, "lr is 0.046875, the highest: the checkpoint does not say"),
        (15, {"steps_per_epoch": 5}, "lr is 0 and stays 0: the run had ended"),
    ]:
        path = save_at(config, step, number, **counters)
        export_arcface_torch(path, tmp_path / str(number), world_size=1, epoch=0)
        assert message in capsys.readouterr().out
    # A version that did not keep the steps of an epoch: its epochs tell them.
    path = save_at(config, step, 10)
    export_arcface_torch(path, tmp_path / "older", world_size=1, epoch=2)
    assert "lr is" not in capsys.readouterr().out


@pytest.mark.parametrize(("number", "epoch"), [(10, 2), (12, 2)])
def test_it_says_what_it_took_and_arcface_torch_goes_on_at_its_epoch(
    config, world, tmp_path, capsys, number, epoch
):
    path = save_at(config, build(config, world), number, steps_per_epoch=5)
    written = export_arcface_torch(Path(config.run.output), tmp_path / "theirs", world_size=1)
    content = torch.load(written[1], weights_only=True)
    assert (content["epoch"], content["global_step"]) == (epoch, number)
    message = capsys.readouterr().out
    assert f"checkpoint    {path}: step {number}, epoch {number / 5:.2f}\n" in message
    assert ("inside an epoch: arcface_torch begins its number 2 again" in message) is (number == 12)
    export_arcface_torch(path, tmp_path / "other", world_size=1, epoch=1)
    assert "inside" not in capsys.readouterr().out, "where it is said by hand"


def test_tensors_in_another_order_are_written_in_the_modules(config, world, tmp_path, monkeypatch):
    """As in the checkpoints of several ranks."""
    step, path = train(config, world)
    read = SavedCheckpoint.tensors
    monkeypatch.setattr(
        SavedCheckpoint,
        "tensors",
        lambda self, *sections: dict(reversed(read(self, *sections).items())),
    )
    written = export_arcface_torch(path, tmp_path / "theirs", world_size=1, epoch=0)
    names = list(step.backbone.state_dict())
    assert list(torch.load(written[0], weights_only=True)) == names
    content = torch.load(written[1], weights_only=True)
    assert list(content["state_dict_backbone"]) == names


def test_safetensors_have_the_mode_of_any_new_file(config, world, tmp_path):
    _, path = train(config, world)
    weights, card = export_safetensors(path, tmp_path / "out", license="mit")
    assert weights.stat().st_mode == card.stat().st_mode


def test_safetensors_load_strictly_and_embed_the_same(config, world, tmp_path):
    step, path = train(config, world)
    weights, card = export_safetensors(path, tmp_path / "out", license="mit")
    with safe_open(weights, framework="pt") as file:
        about = file.metadata()
    known = read_card(weights)
    assert known.digest == known.space == digest_of_weights(step.backbone)
    assert [one.name for one in known.data] == ["faces"]
    assert "private" not in known.as_json()
    assert about == {
        KEY: known.as_json(),
        "format": "pt",
        "name": "iresnet10",
        "embedding_dim": "16",
        "image_size": "32",
        "width": "0.25",
        "dropout": "0.0",
        "se": "False",
        "attention": "[]",
    }
    network = create_model("iresnet10", embedding_dim=16, width=0.25, image_size=tiny.SIZE)
    network.load_state_dict(load_file(weights), strict=True)
    images = torch.randn(2, 3, tiny.SIZE, tiny.SIZE)
    with torch.no_grad():
        assert torch.equal(network.eval()(images), step.backbone.eval()(images))

    text = card.read_text()
    assert text.startswith("---\nlicense: mit\n")
    assert "| classes | 11 identities |" in text
    assert '| loss | cosface {"margin": 0.2, "scale": 16.0} |' in text
    assert "| data | faces |" in text
    assert "private" not in text
    assert "| set | accuracy | tar_at_far |\n| --- | --- | --- |\n| lfw | 0.9978 | 0.5000 |" in text


@pytest.mark.slow
def test_the_cards_own_example_embeds_as_verification_does(config, world, tmp_path, monkeypatch):
    step, path = train(config, world)
    _, card = export_safetensors(path, tmp_path / "out", license="mit")
    example = card.read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path / "out")
    images = torch.randint(0, 256, (2, 3, tiny.SIZE, tiny.SIZE), dtype=torch.uint8)
    names = {"images": images}
    with torch.no_grad():
        exec(example, names)
        pixels = images / 127.5 - 1
        network = step.backbone.eval()
        expected = torch.nn.functional.normalize(network(pixels) + network(pixels.flip(3)))
    torch.testing.assert_close(names["embeddings"], expected, rtol=1e-4, atol=1e-4)


def test_a_run_is_exported_by_its_newest_checkpoint_and_an_import_tells_its_source(
    config, world, tmp_path
):
    _, path = train(config, world)
    export_arcface_torch(path, tmp_path / "theirs", world_size=1, epoch=0)
    import_arcface_torch([tmp_path / "theirs" / "model.pt"], tmp_path / "back")
    _, card = export_safetensors(tmp_path / "back", tmp_path / "out", license="unknown")
    text = card.read_text()
    assert "| loss | unknown: imported from files that do not say it (model.pt) |" in text
    assert "| classes | no head |" in text
    assert "Not verified at this checkpoint." in text
    alone = export_arcface_torch(tmp_path / "back", tmp_path / "alone", world_size=2, epoch=0)
    assert [file.name for file in alone] == ["model.pt"]


def test_a_damaged_or_missing_checkpoint_is_refused(config, world, tmp_path):
    _, path = train(config, world)
    with pytest.raises(WeightsError, match=r"none does not exist: expected a checkpoint"):
        export_safetensors(tmp_path / "none", tmp_path / "out", license="mit")
    shard = next(path.glob("*.distcp"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(WeightsError, match=r"is damaged: .*distcp has .* bytes instead of"):
        export_safetensors(path, tmp_path / "out", license="mit")
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use_is_left_alone(config, world, tmp_path):
    _, path = train(config, world)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text("mine")
    with pytest.raises(CheckpointError, match="out is not empty: name another folder"):
        export_safetensors(path, tmp_path / "out", license="mit")
    with pytest.raises(CheckpointError, match="out is not empty: name another folder"):
        export_arcface_torch(path, tmp_path / "out", world_size=1, epoch=0)
    assert (tmp_path / "out" / "README.md").read_text() == "mine"


def test_subcenters_have_no_place_in_arcface_torch(config, world, tmp_path):
    _, path = train(replace(config, head=replace(config.head, subcenters=2)), world)
    with pytest.raises(CheckpointError, match="has 2 centers a class, expected 1"):
        export_arcface_torch(path, tmp_path / "out", world_size=1, epoch=0)
    assert export_safetensors(path, tmp_path / "out", license="mit")[0].exists()


def test_without_sgds_momentum_it_is_said_and_the_rest_is_there(config, world, tmp_path, capsys):
    _, path = train(replace(config, optim=replace(config.optim, name="adamw")), world)
    export_arcface_torch(path, tmp_path / "out", world_size=2)
    message = capsys.readouterr().out
    assert "no momentum of SGD in the checkpoint" in message
    assert "at epoch 0, as the checkpoint does not say how many are done: give --epoch" in message
    import_arcface_torch([tmp_path / "out"], tmp_path / "back", num_classes=CLASSES)
    assert "its optimizer has 0 such buffers" in capsys.readouterr().out


@pytest.mark.slow
def test_the_command_writes(config, world, tmp_path):
    _, path = train(config, world)
    done = call_apart(main, path, "-o", "out", "--license", "mit", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"checkpoint    {path}: step {STEPS}",
        "wrote         out/model.safetensors",
        "wrote         out/README.md",
    ]


@pytest.mark.slow
def test_mistakes_end_in_one_line(config, world, tmp_path, monkeypatch, capsys):
    _, path = train(config, world)
    options = ["-o", str(tmp_path / "out"), "--format", "arcface_torch", "--ranks", "12"]
    monkeypatch.setattr(sys, "argv", ["export", str(path), *options])
    with pytest.raises(SystemExit, match="2"):
        main()
    message = capsys.readouterr().err
    assert message == "export_weights: 11 classes for 12 ranks: expected fewer ranks\n"
