"""The bottleneck doctor names each cause with its settings, once, and not in the first reading."""

from __future__ import annotations

import pytest

from training.reporting.doctor import Doctor, diagnose

WELL = {"data_wait_fraction": 0.05, "share_head": 0.3, "host_bound_fraction": 0.2, "loss": 3.0}
SETTINGS = {
    "data.threads": 3,
    "data.decode": "hybrid",
    "data.augment": ("flip", "adaface:0.5"),
    "data.order": "global",
    "data.global_batch": 256,
    "head.sample_rate": 0.7,
    "head.backend": "torch",
    "step.cuda_graph": "off",
    "model.compile": False,
}
MEASURES = {
    "data": "data_wait_fraction",
    "head": "share_head",
    "host": "host_bound_fraction",
}
SLOW = {
    "data": WELL | {"data_wait_fraction": 0.234},
    "head": WELL | {"share_head": 0.45},
    "host": WELL | {"host_bound_fraction": 0.6},
}


def test_at_the_limits_all_is_well():
    assert diagnose(WELL, SETTINGS) == {}


@pytest.mark.parametrize(
    ("cause", "share", "named"),
    [
        ("data", "23%", ["data.threads=3", "data.decode=hybrid", "adaface", "data.order=global"]),
        ("head", "45%", ["head.sample_rate=0.7", "head.backend=torch", "step.cuda_graph=off"]),
        ("host", "60%", ["step.cuda_graph=off", "data.global_batch=256", "model.compile=False"]),
    ],
)
def test_a_cause_is_one_line_with_the_share_and_the_present_settings(cause, share, named):
    found = diagnose(SLOW[cause], SETTINGS)
    assert list(found) == [cause]
    assert "\n" not in found[cause]
    assert all(text in found[cause] for text in (share, *named))


def test_causes_are_reported_together():
    everything = WELL | {measure: SLOW[cause][measure] for cause, measure in MEASURES.items()}
    assert list(diagnose(everything, SETTINGS)) == ["data", "head", "host"]


def test_on_a_cpu_nothing_that_only_gpus_have_is_proposed():
    on_cpu = SETTINGS | {"run.device": "cpu", "data.decode": "cpu"}
    found = diagnose(WELL | {"data_wait_fraction": 0.5, "share_head": 0.5}, on_cpu)
    assert "data.threads=3" in found["data"]
    assert "head.sample_rate=0.7" in found["head"]
    for setting in ("data.decode", "head.backend", "step.cuda_graph"):
        assert setting not in found["data"] + found["head"]


def test_what_is_not_measured_is_no_cause():
    """As the head's share, where a CUDA graph holds the whole step."""
    reading = {name: share for name, share in SLOW["data"].items() if name != "share_head"}
    assert list(diagnose(reading, SETTINGS)) == ["data"]


def test_a_setting_that_the_run_lacks_is_not_proposed():
    line = diagnose(SLOW["head"], {"head.sample_rate": 1.0})["head"]
    assert "head.sample_rate=1.0" in line
    assert "backend" not in line


@pytest.mark.parametrize("cause", SLOW)
def test_a_cause_is_reported_once_and_again_only_after_it_was_gone(cause):
    """It is gone below half its limit: hovering around the limit does not make it news."""
    doctor, slow = Doctor(SETTINGS), SLOW[cause]
    gone = WELL | {MEASURES[cause]: WELL[MEASURES[cause]] / 2.1}
    seen = [slow, WELL, slow, slow, WELL, slow, gone, slow, slow]
    message = [len(doctor(reading)) for reading in seen]
    assert message == [0, 0, 1, 0, 0, 0, 0, 1, 0], "the first reading is warm-up"


def test_a_new_cause_is_reported_beside_an_old_one():
    doctor = Doctor(SETTINGS)
    doctor(WELL)
    assert "images" in doctor(SLOW["data"])[0]
    [line] = doctor(SLOW["data"] | {"share_head": 0.5})
    assert "head" in line


def test_what_is_as_good_as_it_gets_is_not_proposed():
    settings = {
        **SETTINGS,
        "step.cuda_graph": "full",
        "model.compile": True,
        "head.backend": "triton",
        "data.decode": "gpu",
        "head.sample_rate": 0.0,
    }
    reading = {"data_wait_fraction": 0.5, "share_head": 0.5, "host_bound_fraction": 0.5}
    message = " ".join(diagnose(reading, settings).values())
    assert "data.threads=" in message
    assert "data.global_batch=" in message
    for setting in (
        "head.sample_rate",
        "step.cuda_graph",
        "model.compile",
        "head.backend",
        "data.decode",
    ):
        assert setting not in message
