"""Which settings may differ where a run goes on."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from training.config import Config, DataConfig, OptimConfig, override
from training.saving.settings import BINDING, FREE, compare_settings

CONFIG = Config(data=DataConfig(train="unused"))
BLOCKS = override(CONFIG, ["data.order=block"])
STEPS = replace(CONFIG, optim=OptimConfig(schedule="step", decay_epochs=(8, 14)))


def saved(config: Config) -> dict:
    """As config.json has it."""
    return json.loads(json.dumps(config.as_dict()))


def test_every_setting_is_either_free_or_binding():
    """A new field of Config must be put into one of the two tables."""
    everything = {(section, key) for section, keys in CONFIG.as_dict().items() for key in keys}
    free, binding = (
        [(section, key) for section, keys in table.items() for key in keys]
        for table in (FREE, BINDING)
    )
    assert sorted(everything) == sorted([*free, *binding])


def test_the_same_configuration_does_not_differ():
    config = override(CONFIG, ["head.sample_rate_from={3: 0.5}", "data.augment=[flip,light]"])
    differ = compare_settings(saved(config), config)
    assert (differ.free, differ.binding) == ((), ())


def test_all_that_differs_is_listed_with_both_values():
    now = override(BLOCKS, ["optim.lr=0.2", "data.block_records=512", "log.every=9"])
    differ = compare_settings(saved(BLOCKS), now)
    assert differ.binding == ("data.block_records was 256, is 512", "optim.lr was 0.1, is 0.2")
    assert differ.free == ("log.every was 50, is 9",)


@pytest.mark.parametrize(
    ("config", "change"),
    [
        (CONFIG, "data.block_records=512"),  # order=global
        (STEPS, "optim.power=3"),
        (CONFIG, "head.loss_args={margin: 0.5}"),  # the usual one of arcface
        (CONFIG, "run.output=elsewhere"),
    ],
)
def test_what_does_nothing_does_not_count(config, change):
    differ = compare_settings(saved(config), override(config, [change]))
    assert (differ.free, differ.binding) == ((), ())


@pytest.mark.parametrize(
    ("config", "bound"),
    [
        (CONFIG, True),
        (STEPS, False),
        (override(STEPS, ["distill.teacher=t", "distill.weight_end=0.0"]), True),
        (override(STEPS, ["distill.teacher=t"]), False),
    ],
)
def test_epochs_bind_only_where_a_step_depends_on_them(config, bound):
    differ = compare_settings(saved(config), override(config, ["run.epochs=30"]))
    assert ("run.epochs was 20, is 30" in differ.binding) is bound
    assert ("run.epochs was 20, is 30" in differ.free) is not bound


def test_a_newer_setting_counts_as_its_default_and_one_that_is_gone_is_named():
    older = saved(CONFIG)
    del older["optim"]["clip"], older["distill"]
    older["optim"]["nesterov"] = True
    differ = compare_settings(older, CONFIG)
    assert differ.binding == ()
    assert differ.free == ("optim.nesterov was true, is no setting any more",)
    assert compare_settings(older, override(CONFIG, ["optim.clip=1"])).binding == (
        "optim.clip was 5.0, is 1.0",
    )
