"""What a run refuses before it begins, and that the mended one finds its folder free."""

from __future__ import annotations

import pytest

from tests.training import tiny
from tests.training.runs import build
from training.config import ConfigError, override
from training.saving import checkpoint
from training.saving.files import CheckpointError


def test_a_folder_with_something_else_is_refused(data, world, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(checkpoint.CheckpointError, match=r"not empty \(thesis\.tex\)"):
        build(tiny.config(data, tmp_path), world)


def test_labels_beyond_the_classes_are_refused_before_anything_is_allocated(data, world, tmp_path):
    config = override(tiny.config(data, tmp_path / "run"), ["head.num_classes=7"])
    with pytest.raises(
        ConfigError, match=r"head\.num_classes=7: .* labels up to 9, .* at offset \d+"
    ):
        build(config, world)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("model.sync_bn=true", r"model\.sync_bn=True: expected a GPU"),
        ("data.global_batch=100", "global batch of 100 does not fit 70 records"),
        ("data.augment=[flap]", "flap"),
        ("run.output=/dev/null", "is a file: choose a folder"),
        ("data.train=nowhere.rec", r"nowhere\.rec does not exist"),
    ],
)
def test_what_cannot_run_is_refused_with_its_name(data, world, tmp_path, change, complaint):
    with pytest.raises(ValueError, match=complaint):
        build(override(tiny.config(data, tmp_path / "run"), [change]), world)
    assert not (tmp_path / "run").exists(), "the mended run finds its folder free"


def test_an_order_that_cannot_be_is_refused_with_its_name(data, world, tmp_path):
    config = override(
        tiny.config(data, tmp_path / "run"),
        ["data.order=balanced", "data.images_per_identity=5"],
    )
    with pytest.raises(ValueError, match=r"images=5 does not.*data\.images_per_identity"):
        build(config, world)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.train=[]"], "expected a .rec file, its folder, or a set of another form"),
        (["data.train=[a.rec,a.rec]"], "expected each file once"),
        (["data.weights=[1,2]"], "expected one for each of data.train, which are 1"),
        (["data.weights=[1]", "data.order=balanced"], "expected none with data.order=balanced"),
        (["data.weights=[-1]"], "expected at least 0"),
    ],
)
def test_files_and_weights_that_do_not_fit_are_named(overrides, message, data, world, tmp_path):
    with pytest.raises(ConfigError, match=message):
        build(override(tiny.config(data, tmp_path / "run"), overrides), world)


def test_a_failed_start_from_weights_leaves_the_folder_free(data, world, tmp_path):
    config = override(
        tiny.config(data, tmp_path / "run"), [f"run.init_from={tmp_path / 'nowhere'}"]
    )
    with pytest.raises(ValueError, match="nowhere"):
        build(config, world)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_does_not_go_on_with_other_peoples_centers(data, world, tmp_path):
    """The same file, less one identity: labels mean what they meant, but the set is another."""
    build(tiny.config(data, tmp_path / "run"), world).run()
    (tmp_path / "drop.txt").write_text("identity 3\n")
    changed = override(
        tiny.config(data, tmp_path / "run"), [f"data.leave_out={tmp_path / 'drop.txt'}"]
    )
    with pytest.raises(CheckpointError, match="records and labels"):
        build(changed, world)
