"""data.columns in a run: weights reach the loss, margins get what they name, resume is the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from facestream import UserError
from heads import MARGINS, OWN_MARGINS, Margin, StepContext, Target, register_margin
from pipeline.order import GlobalOrder
from pipeline.records.index import open_index
from tests.training import tiny
from tests.training.steps import build
from training.config import Config, ConfigError, override
from training.distributed import World
from training.loop import Trainer
from training.saving.files import CheckpointError


@dataclass(frozen=True, kw_only=True)
class Careful(Margin):
    columns: ClassVar[tuple[str, ...]] = ("quality",)

    def bend(self, cosine: Tensor, norms: Tensor, context: StepContext) -> Target:
        return Target(cosine - 0.3 * context.columns["quality"])


@pytest.fixture
def careful() -> Iterator[str]:
    register_margin("careful", Careful)
    yield "careful"
    del MARGINS["careful"], OWN_MARGINS["careful"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_set(tmp_path_factory.mktemp("tiny"))


def write_columns(data: Path, folder: Path, *, weight: float, quality: float = 0.0) -> Path:
    """The image that is left over in the first epoch weighs 1: at least one must weigh anything."""
    index = open_index(data)
    order = GlobalOrder(len(index), seed=tiny.config(data, folder).run.seed)
    last = int(order(np.array([len(index) - 1]), 0)[0])
    lines = [
        f"{index.file.name(record)},{1 if i == last else weight},{quality}"
        for i, record in enumerate(index.records)
    ]
    path = folder / f"{weight}_{quality}.csv"
    path.write_text("\n".join(["name,weight,quality", *lines]))
    return path


def trained(config: Config, world: World) -> Trainer:
    trainer = build(config, world)
    trainer.run()
    return trainer


def state(trainer: Trainer) -> dict[str, Tensor]:
    return trainer.step.backbone.state_dict() | {"centers": trainer.step.head.centers}


@pytest.mark.slow
def test_weights_of_one_change_nothing_and_weights_of_zero_teach_nothing(data, world, tmp_path):
    """Of zero: no gradient moves a weight that does not decay. Micro-batches have theirs, too."""

    def run(name: str, *more: str) -> dict[str, Tensor]:
        config = override(tiny.config(data, tmp_path / name), ["run.epochs=1", *more])
        return state(trained(config, world))

    ones, zeros = (write_columns(data, tmp_path, weight=weight) for weight in (1, 0))
    plain = run("plain", "optim.weight_decay=0", "step.micro_batches=2")
    same = run(
        *("ones", "optim.weight_decay=0", "step.micro_batches=2"),
        *(f"data.columns=[{ones}]", "data.record_weights=true"),
    )
    for name, tensor in plain.items():
        torch.testing.assert_close(same[name], tensor, msg=name)
    untaught = run(
        *("zeros", "optim.weight_decay=0"),
        *(f"data.columns=[{zeros}]", "data.record_weights=true"),
    )
    fresh = build(tiny.config(data, tmp_path / "fresh"), world)
    assert torch.equal(untaught["centers"], fresh.step.head.centers)
    assert not torch.equal(plain["centers"], fresh.step.head.centers)
    fresh.close()


@pytest.mark.slow
def test_a_teachers_part_is_not_weighted(data, world, tmp_path):
    """Nor in micro-batches: ones change nothing, and with zeros the backbone learns from it."""
    trained(override(tiny.config(data, tmp_path / "teacher"), ["run.epochs=1"]), world).close()

    def run(name: str, *more: str) -> Trainer:
        taught = [f"distill.teacher={tmp_path / 'teacher'}", "step.micro_batches=2"]
        settings = ["run.epochs=1", "optim.weight_decay=0", *taught, *more]
        return trained(override(tiny.config(data, tmp_path / name), settings), world)

    plain, ones, zeros = (
        run(
            str(weight),
            *([f"data.columns=[{write_columns(data, tmp_path, weight=weight)}]"] * (weight < 2)),
            f"data.record_weights={str(weight < 2).lower()}",
        )
        for weight in (2, 1, 0)
    )
    for name, tensor in state(plain).items():
        torch.testing.assert_close(state(ones)[name], tensor, msg=name)
    fresh = build(tiny.config(data, tmp_path / "fresh"), world)
    assert torch.equal(zeros.step.head.centers, fresh.step.head.centers)
    last = "fc.weight"
    assert not torch.equal(state(zeros)[last], state(fresh)[last])
    fresh.close()


@pytest.mark.slow
def test_a_margin_gets_its_column_and_the_run_goes_on_with_the_same_file_alone(
    data, world, tmp_path, careful
):
    easy, hard = (
        write_columns(data, tmp_path, weight=1, quality=quality) for quality in (0.0, 1.0)
    )
    config = tiny.config(data, tmp_path / "run")
    config = replace(config, head=replace(config.head, loss=careful, loss_args={"scale": 16.0}))
    config = override(config, ["run.epochs=1", f"data.columns=[{hard}]"])
    trained(config, world)
    moved = hard.rename(tmp_path / "moved.csv")
    assert trained(override(config, [f"data.columns=[{moved}]"]), world).steps_done == 5
    with pytest.raises(CheckpointError, match="its side columns is"):
        trained(override(config, [f"data.columns=[{easy}]"]), world)
    with pytest.raises(UserError, match=r"the head needs quality, found no column.*data\.columns"):
        trained(override(config, ["data.columns=[]", f"run.output={tmp_path / 'none'}"]), world)


def test_weights_without_a_file_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.record_weights=True: .* without data\.columns"):
        override(tiny.config(tmp_path, tmp_path), ["data.record_weights=true"])
