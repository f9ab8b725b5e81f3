"""The number of ranks changes nothing: same losses, and checkpoints that go over to any other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.distributed as dist

from models.normalize import normalize
from tests.ranks import run_ranks
from tests.training import tiny
from training.config import Config, override
from training.data import TrainingData
from training.distributed import World
from training.loop import Trainer
from training.reporting.stopwatch import Stopwatch
from training.step.optim import set_learning_rate
from training.step.precision import choose_precision

# The loss falls to a seventh in twenty steps. At thirty times the rate, a change of 1e-7 in the
# weights of a single process moves the last losses by 1e-3: no two orders of summation would agree.
RATE = 0.0001


def prepare(config: Config, world: World) -> Trainer:
    """A trainer whose BatchNorm does not look at the batch, which ranks share out differently.

    Its statistics are those of one fixed batch: untrained ones let rounding grow without bound.
    """
    trainer = Trainer(
        config,
        world,
        precision=choose_precision(world.device, "fp32"),
    )
    if trainer.steps_done == 0:
        for module in trainer.step.backbone.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.momentum = 1.0
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (64, 3, tiny.SIZE, tiny.SIZE), generator=generator)
        with torch.no_grad():
            trainer.step.backbone(normalize(images.to(torch.uint8), torch.float32))
    trainer.step.backbone.eval()
    return trainer


def advance(trainer: Trainer, world: World, steps: int) -> list[float]:
    stream = trainer.loader.stream(*divmod(trainer.steps_done, trainer.loader.steps_per_epoch))
    stopwatch, losses = Stopwatch(world.device), []
    for _ in range(steps):
        images, labels, *_ = next(stream)
        lr = set_learning_rate(trainer.step.optimizer, RATE)
        losses.append(trainer.step(images, labels, lr, stopwatch.lap).loss.item())
        trainer.steps_done += 1
    return losses


def all_centers(trainer: Trainer) -> np.ndarray:
    gathered: list = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, trainer.step.head.centers.numpy())
    return np.concatenate(gathered)


def disagree(world: World, config: Config) -> str:
    different = override(config, [f"run.seed={world.rank}"])
    with pytest.raises(ValueError, match="ranks disagree") as caught:
        prepare(different, world)
    return str(caught.value)


@pytest.mark.slow
def test_ranks_that_were_started_differently_say_so_instead_of_hanging(data, tmp_path):
    torch.manual_seed(0)
    messages = run_ranks(
        disagree, tiny.config(data, tmp_path / "run"), world_size=2, folder=tmp_path
    )
    said = "the ranks disagree on run.seed (rank 0 has '0', rank 1 has '1'). Start"
    assert all(message.startswith(said) for message in messages), "only what differs"


def read_other_bytes(world: World, config: Config) -> str:
    """As from the disks of two machines, where one name leads to two sets."""
    TrainingData.fingerprint = f"digest{world.rank}"
    with pytest.raises(ValueError, match="ranks disagree") as caught:
        prepare(config, world)
    return str(caught.value)


def test_ranks_that_read_different_sets_learn_which_files_those_are(data, tmp_path):
    config = tiny.config(data, tmp_path / "run")
    for said in run_ranks(read_other_bytes, config, world_size=2, folder=tmp_path):
        assert f"the ranks disagree on dataset of data.train={data} (rank 0 has 'digest0', " in said


def stretch(world: World, config: Config) -> tuple[int, np.ndarray, list[float], np.ndarray]:
    """Four steps, saved: where they began, the centers then, their losses, the centers now."""
    trainer = prepare(config, world)
    begun, found = trainer.steps_done, all_centers(trainer)
    losses = advance(trainer, world, 4)
    trainer.save()
    trainer.wait_for_checkpoint()
    trainer.close()
    return begun, found, losses, all_centers(trainer)


def whole(world: World, config: Config) -> list[float]:
    """Sixteen steps in one go."""
    trainer = prepare(config, world)
    losses = advance(trainer, world, 16)
    trainer.close()
    return losses


@pytest.mark.slow
def test_four_three_one_and_two_ranks_go_on_with_one_run(data, tmp_path):
    """Ten classes: neither four nor three ranks hold as many each. An epoch has five steps, so that
    each stops in the middle of another."""
    config = tiny.config(data, tmp_path / "run")
    centers, losses = None, []
    for number, world_size in enumerate((4, 3, 1, 2)):
        results = run_ranks(stretch, config, world_size=world_size, folder=tmp_path)
        begun, found, said, after = results[0]
        assert begun == 4 * number
        assert centers is None or np.array_equal(found, centers), "the centers, bit for bit"
        assert all(result[2] == said for result in results), "the loss is the global one"
        losses += said
        centers = after
    alone = tiny.config(data, tmp_path / "alone")
    (expected,) = run_ranks(whole, alone, world_size=1, folder=tmp_path)
    assert losses == pytest.approx(expected, rel=3e-5)  # sums in another order, for sixteen steps
    assert losses[-1] < losses[0], "something was learned"
