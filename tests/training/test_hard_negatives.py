"""A run with hard negatives: it goes on in the middle of a table, at any number of ranks."""

from __future__ import annotations

import shutil

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from heads.neighbors.classes import NeighborClasses
from tests.ranks import run_ranks
from tests.training import tiny
from tests.training.steps import advance, build, go_on, save_in_the_middle
from training.config import ConfigError, override
from training.loop import Trainer

# Tables are begun at the steps 0, 4, 8, … and in force four steps later.
SETTINGS = (
    *("head.num_classes=61", "head.sample_count=24", "head.hard_negatives=0.5"),
    *("head.neighbors=3", "head.neighbors_every=4"),
)


def test_a_resumed_run_goes_on_in_the_middle_of_a_table_bit_for_bit(data, world, tmp_path):
    """At step 10 a table is in force and half of the next one is built."""
    config = override(tiny.config(data, tmp_path / "run"), [*SETTINGS])
    whole = build(config, world)
    whole.run()
    head = whole.step.head
    assert isinstance(head.sampling, NeighborClasses)
    assert head.sampling.rate == 24 / 61
    assert (head.neighbors.ids >= 0).all()

    [last] = (tmp_path / "run" / "checkpoints").glob("step_*15")
    shutil.rmtree(last)
    resumed = build(config, world)
    assert resumed.steps_done == 10
    resumed.run()
    for (name, found), expected in zip(
        resumed.step.head.state_dict().items(), head.state_dict().values(), strict=True
    ):
        assert torch.equal(found, expected), name


def tables(trainer: Trainer) -> list[Tensor]:
    """Of all ranks: in force, being built, and the centers for it."""
    buffers = [None] * dist.get_world_size()
    table = trainer.step.head.neighbors
    dist.all_gather_object(buffers, [table.ids, table.best, table.kept])
    return [torch.cat(parts) for parts in zip(*buffers, strict=True)]


@pytest.mark.slow
def test_another_number_of_ranks_finishes_the_same_table(data, tmp_path):
    """What is built from step 4 on is in force at step 8, whoever built which half of it."""
    config = override(tiny.config(data, tmp_path / "run"), [*SETTINGS])
    before = run_ranks(save_in_the_middle, config, tables, world_size=2, folder=tmp_path)
    saved, finished = before[0]
    assert not torch.equal(saved[0], finished[0]), "another table"
    for world_size in (1, 3):
        found, then = run_ranks(go_on, config, tables, world_size=world_size, folder=tmp_path)[0]
        assert all(torch.equal(a, b) for a, b in zip(found, saved, strict=True))
        assert torch.equal(then[0], finished[0]), "the table, bit for bit"


@pytest.mark.slow
@pytest.mark.parametrize("before", [[], ["head.neighbors=2"], ["head.neighbors_every=7"]])
def test_a_run_that_goes_on_with_other_neighbors_begins_a_table_of_its_own(
    before, data, world, tmp_path, caplog
):
    """From step 5 on: none is begun until step 8, and nothing is made of what is not there."""
    first = [*SETTINGS, "head.hard_negatives=0"] if not before else [*SETTINGS, *before]
    build(override(tiny.config(data, tmp_path / "first"), [*first, "run.epochs=1"]), world).run()
    then = [*SETTINGS, f"run.resume={tmp_path / 'first'}"]
    trainer = build(override(tiny.config(data, tmp_path / "then"), then), world)
    table = trainer.step.head.neighbors
    assert trainer.steps_done == 5
    shape_fits = before == ["head.neighbors_every=7"]
    assert ("the table of neighbors: not as" in caplog.text) != shape_fits
    advance(trainer, world, 3)
    assert (table.ids == -1).all()
    advance(trainer, world, 4)
    assert (table.ids >= 0).all()
    assert table.begun == 8
    trainer.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["head.sample_rate=1"], r"head\.hard_negatives=0.5: expected 0 without"),
        (["head.sample_rate=0"], r"head\.hard_negatives=0.5: expected 0 without"),
        (["head.sample_rate=0.1", "head.sample_rate_from={2: 0}"], r"head\.hard_negatives=0.5"),
        (["head.sample_groups=10"], r"head\.hard_negatives=0.5: expected 0 without"),
        (["head.sample_count=9", "head.place=host"], r"head\.place='host': expected device with"),
        (["head.sample_count=9", "step.cuda_graph=full"], r"step\.cuda_graph='full': expected off"),
    ],
)
def test_what_goes_not_together_with_them_is_refused(data, tmp_path, settings, message):
    config = tiny.config(data, tmp_path)
    with pytest.raises(ConfigError, match=message):
        override(config, ["head.hard_negatives=0.5", *settings])
