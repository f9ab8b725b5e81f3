"""The rate at every step: where it starts, peaks and ends, and what is said of it."""

from itertools import pairwise
from pathlib import Path

import pytest

from heads import ArcFace, create_margin
from training.config import (
    Config,
    ConfigError,
    DataConfig,
    OptimConfig,
    RunConfig,
    load_config,
)
from training.step.schedules import Schedule, create_schedule


def schedule(*, global_batch: int = 1024, **changes) -> Schedule:
    """Ten epochs of a hundred steps, two of them warm-up."""
    settings = {"lr": 0.1, "warmup_epochs": 2} | changes
    return create_schedule(
        OptimConfig(**settings), global_batch=global_batch, epochs=10, steps_per_epoch=100
    )


SHAPES = [
    {"schedule": "polynomial"},
    {"schedule": "step", "decay_epochs": (5, 7.5)},
    {"schedule": "cosine", "min_lr": 0.01},
]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape["schedule"])
def test_the_peak_is_in_proportion_to_the_batch_and_follows_an_even_warm_up(shape):
    rate = schedule(**shape)
    warm = [rate(step) for step in range(201)]
    assert warm[0] == pytest.approx(0.2 / 201), "small, but not nothing"
    assert all(b - a == pytest.approx(0.2 / 201) for a, b in pairwise(warm))
    assert warm[200] == pytest.approx(0.2)
    decay = [rate(step) for step in range(200, 1000)]
    assert decay == sorted(decay, reverse=True)
    assert decay[-1] > 0


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape["schedule"])
def test_without_warm_up_the_first_step_has_the_full_rate(shape):
    assert schedule(warmup_epochs=0, **shape)(0) == pytest.approx(0.2)


def test_polynomial_decay_is_a_power_of_what_is_left():
    rate = schedule(power=3.0)
    assert rate(600) == pytest.approx(0.2 * 0.5**3)
    assert rate(1000) == 0


def test_step_decay_falls_at_its_epochs_and_is_level_between_them():
    rate = schedule(schedule="step", decay_epochs=(5, 7.5), decay_factor=0.5)
    levels = [rate(step) for step in range(200, 1000)]
    assert levels == pytest.approx([0.2] * 300 + [0.1] * 250 + [0.05] * 250)


def test_cosine_decay_has_its_middle_in_the_middle_and_ends_at_the_share_it_is_given():
    rate = schedule(schedule="cosine", min_lr=0.1)
    assert rate(600) == pytest.approx((0.2 + 0.02) / 2)
    assert rate(400) + rate(800) == pytest.approx(0.2 + 0.02), "symmetric about it"
    assert rate(999) == pytest.approx(0.02, rel=1e-4)
    assert rate(1000) == pytest.approx(0.02)


def test_a_warm_up_of_nearly_the_whole_run_never_divides_by_nothing():
    config = OptimConfig(warmup_epochs=0.9)
    rate = create_schedule(config, global_batch=512, epochs=1, steps_per_epoch=3)
    assert [rate(step) for step in range(3)] == pytest.approx([0.025, 0.05, 0.075])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {},
            "0.1 for a batch of 512, so 0.2 for 1024; 200 steps of warm-up, "
            "then to the power of 2 down to 0 at step 1000",
        ),
        (
            {"schedule": "step", "decay_epochs": (5, 7.5), "global_batch": 512},
            "0.1 for a batch of 512; 200 steps of warm-up, "
            "then times 0.1 at step 500 and at 750, ending at step 1000",
        ),
        (
            {"schedule": "cosine", "min_lr": 0.01, "warmup_epochs": 0, "global_batch": 64},
            "0.1 for a batch of 512, so 0.0125 for 64; no steps of warm-up, "
            "then along a cosine down to 0.000125 at step 1000",
        ),
    ],
)
def test_a_schedule_tells_what_was_derived(settings, message):
    assert str(schedule(**settings)) == message


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"decay_epochs": (3,)}, r"decay_epochs=\(3,\): .* none otherwise; .*=polynomial"),
        ({"schedule": "step"}, r"decay_epochs=\(\): expected some with optim\.schedule=step"),
        ({"schedule": "step", "decay_epochs": (5, 3)}, r"\(5, 3\): expected each later than"),
        ({"schedule": "step", "decay_epochs": (0,)}, "than optim.warmup_epochs=0.0"),
        (
            {"schedule": "step", "decay_epochs": (1, 3), "warmup_epochs": 2},
            "than optim.warmup_epochs=2",
        ),
        (
            {"schedule": "step", "decay_epochs": (3, 10)},
            r"decay_epochs=\(3, 10\): expected each less than run\.epochs=10",
        ),
        (
            {"schedule": "step", "decay_epochs": (3,), "decay_factor": 1.0},
            r"optim\.decay_factor=1\.0: expected above 0 and below 1",
        ),
        ({"schedule": "cosine", "min_lr": 1.0}, r"optim\.min_lr=1\.0: expected at least 0 and"),
        ({"min_lr": 0.1}, r"optim\.min_lr=0\.1: expected 0 unless optim\.schedule=cosine"),
    ],
)
def test_schedules_that_make_no_sense_are_refused(settings, complaint):
    with pytest.raises(ConfigError, match=complaint):
        Config(
            run=RunConfig(epochs=10),
            data=DataConfig(train="x.rec"),
            optim=OptimConfig(**settings),
        )


MS1MV2 = Path(__file__).parents[3] / "configs/ms1mv2_r50.py"


def rates(*overrides: str) -> Schedule:
    config = load_config(MS1MV2, overrides)
    return create_schedule(
        config.optim,
        global_batch=config.data.global_batch,
        epochs=config.run.epochs,
        steps_per_epoch=100,
    )


def test_ms1mv2_r50_is_arcface_torchs_published_run():
    config, rate = load_config(MS1MV2), rates()
    assert config.model.name == "iresnet50"
    assert (config.optim.name, config.optim.momentum) == ("sgd", 0.9)
    assert config.optim.weight_decay == 5e-4
    assert config.head.weight_decay is None, "the centers' is the same"
    assert config.head.lr is None, "and so is their rate"
    assert config.head.sample_rate == 1
    assert (config.run.epochs, config.data.global_batch) == (20, 1024)
    margin = create_margin(config.head.loss, **config.head.loss_args)
    assert margin == ArcFace(margin=0.5, scale=64.0, gradient="straight_through")
    assert rate.warmup_steps == 0
    assert [rate(step) for step in (0, 1000, 1500)] == pytest.approx([0.1, 0.025, 0.00625])


def test_ms1mv2_r50_has_what_its_docstring_says_of_other_rates():
    assert rates("optim.power=1")(1000) == pytest.approx(0.05)
    assert rates("data.global_batch=256").peak == pytest.approx(0.025)
    assert rates("data.global_batch=256", "optim.lr=0.2").peak == pytest.approx(0.1)
