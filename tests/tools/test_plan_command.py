"""The command prints what follows from its arguments, and refuses with what there is."""

from __future__ import annotations

import sys

import pytest

from tools import plan

SMALL = ("model.width=0.25", "model.embedding_dim=64", "data.image_size=32")


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["plan.py", *arguments])
    plan.main()


@pytest.mark.slow
def test_it_says_memory_speed_and_sessions(monkeypatch, capsys):
    kaggle = ("--classes", "2_000_000", "--gpus", "2", "--gpu", "t4", "--batch", "32")
    run(monkeypatch, *kaggle, "--model", "iresnet10", "--images", "40_000_000", *SMALL)
    out = capsys.readouterr().out
    assert "2,000,000 identities" in out
    assert "32 images on each of 2 × T4: 64 a step" in out
    assert "float16" in out or "bfloat16" in out
    assert "\nfits\n" in out
    assert "largest batch: " in out
    assert "counted. Published" in out
    assert "an epoch of 40,000,000 images" in out
    assert "Kaggle sessions of 11.5 h" in out
    assert "sample rate 0.1: first that fits float32, float32 on device" in out
    for place in ("device", "host", "disk"):
        assert place in out


@pytest.mark.slow
def test_settings_are_those_of_a_run(monkeypatch, capsys):
    one = ("--classes", "1000", "--gpu", "h100", "--batch", "8", "--model", "iresnet10", *SMALL)
    run(monkeypatch, *one, "head.place=disk")
    out = capsys.readouterr().out
    assert "the disk's time is not in it" in out
    assert "Kaggle" not in out


@pytest.mark.slow
def test_what_does_not_fit_says_what_would(monkeypatch, capsys):
    many = ("--classes", "500_000_000", "--gpu", "t4", "--batch", "8", "--model", "iresnet10")
    run(monkeypatch, *many, *SMALL, "model.embedding_dim=512")
    out = capsys.readouterr().out
    assert "does not fit. Try more ranks, which share the centers" in out
    assert "largest batch: none" in out
    assert "sample all: no state of the centers fits" in out
    assert "sample 100,000: first that fits bfloat16, none on host" in out


@pytest.mark.parametrize(
    ("arguments", "there_is"),
    [
        (("--gpu", "t5"), "h100"),
        (("--gpu", "t4", "--model", "resnet"), "iresnet50"),
        (("--gpu", "t4", "head.plaec=host"), "place_path"),
    ],
)
def test_what_is_unknown_is_answered_with_what_there_is(monkeypatch, capsys, arguments, there_is):
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, "--classes", "1000", *arguments)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("plan: ")
    assert there_is in error
    assert "Traceback" not in error
