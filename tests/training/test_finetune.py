"""configs/finetune.py: the loss starts where mean embeddings put it, and does not jump."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training import tiny
from tests.training.people import with_data, write_people
from training.config import Config, load_config, override
from training.distributed import World
from training.loop import Trainer
from training.saving.reading import open_weights
from training.shipping.export import export
from training.shipping.shipped import Form
from training.step.precision import choose_precision

RECIPE = Path(__file__).parents[2] / "configs" / "finetune.py"
OLD = tuple(f"old {number}" for number in range(12))
NEW = tuple(f"new {number}" for number in range(6))


def losses(config: Config, world: World, steps: int) -> list[float]:
    trainer = Trainer(config, world, precision=choose_precision(world.device, "fp32"))
    stream = trainer.loader.stream(0)
    found = []
    for number in range(steps):
        if number and number % trainer.loader.steps_per_epoch == 0:
            stream = trainer.loader.stream(number // trainer.loader.steps_per_epoch)
        found.append(float(trainer.train_on(next(stream), lambda phase: None).loss))
    trainer.close()
    return found


@pytest.fixture(scope="module")
def published(world, tmp_path_factory) -> tuple[Config, Path]:
    """How a network was trained, and what is left of it: a graph with BatchNorm folded."""
    folder = tmp_path_factory.mktemp("published")
    config = with_data(
        override(tiny.config(folder, folder), ["run.epochs=6", "run.save_every=6", "optim.lr=4"]),
        write_people(folder / "old", OLD, images=8),
        output=folder / "run",
    )
    Trainer(config, world, precision=choose_precision(world.device, "fp32")).run()
    export(open_weights(folder / "run"), folder / "model.onnx", form=Form())
    return config, folder / "model.onnx"


@pytest.mark.slow
def test_the_loss_of_the_first_steps_stays_near_what_mean_embeddings_give(
    published, world, tmp_path
):
    config, onnx = published
    new = write_people(tmp_path / "new", NEW, images=10)
    start = [f"run.init_from={onnx}", "data.global_batch=12"]
    as_trained = override(with_data(config, new, output=tmp_path / "naive"), start)
    naive = losses(as_trained, world, 20)
    small = [
        *("model.name=iresnet10", "model.width=0.25", "model.embedding_dim=16"),
        *("head.loss=cosface", "head.loss_args={margin: 0.2, scale: 16}"),
        *(f"data.image_size={tiny.SIZE}", "run.device=cpu"),
    ]
    recipe = with_data(load_config(RECIPE), new, output=tmp_path / "recipe")
    tuned = losses(override(recipe, [*small, *start]), world, 20)
    assert max(tuned) < 1.2 * tuned[0]
    assert tuned[-1] < tuned[0]
    assert max(naive) > 2 * naive[0]
