"""TensorBoard's curves come in groups, and only where there is something to see."""

from __future__ import annotations

from training.reporting.tags import Tags

QUIET = {"distillation": 0.0, "skipped_steps": 0.0, "loss_scale": 1.0, "host_bound_fraction": 0.0}


def test_readings_are_grouped():
    reading = {"loss": 3.0, "lr": 0.1, "images_per_s": 9.0, "share_data": 0.1, "memory_mb": 5.0}
    assert set(Tags().named(reading)) == {
        *("loss/loss", "steps/lr", "speed/images_per_s", "data/share_data", "memory/memory_mb")
    }


def test_what_says_nothing_has_no_curve_until_it_does():
    """From then on it goes back to nothing, too: three skipped steps are a peak, no level."""
    tags = Tags()
    assert tags.named(QUIET) == {}
    assert tags.named(QUIET | {"skipped_steps": 3.0}) == {"steps/skipped_steps": 3.0}
    assert tags.named(QUIET) == {"steps/skipped_steps": 0.0}


def test_a_mean_over_no_step_is_something():
    assert list(Tags().named({"distillation": float("nan")})) == ["loss/distillation"]
