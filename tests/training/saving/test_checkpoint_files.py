"""Folders of checkpoints: damage is found and named, and only what should go is removed."""

from __future__ import annotations

import errno
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from training.saving import digests, disk, files

SHARD, CONTENT = "__0_0.distcp", bytes(range(256)) * 300


def make(output: Path, step: int, accuracy: float | None = None) -> Path:
    """A complete checkpoint of one shard."""
    final = files.folder_of(output, step)
    files.clear(final)
    final.mkdir()
    with digests.DigestedFile(final / SHARD) as shard:
        shard.write(CONTENT[:1000])
        shard.write(CONTENT[1000:])
    documents = {"about.json": {"step": step, "accuracy": accuracy}}
    files.complete(final, documents=documents, digests={SHARD: shard.digest()})
    return final


def damage(path: Path, *, at: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_a_complete_one_appears_under_its_name_and_holds(tmp_path):
    path = make(tmp_path, 7)
    assert files.checkpoints(tmp_path) == [path] == [files.newest(tmp_path)]
    assert files.faults(path) == []
    assert {file.name for file in path.iterdir()} == {SHARD, "about.json", "manifest.json"}
    assert files.read_about(path)["step"] == 7


@pytest.mark.parametrize("at", [0, 255, len(CONTENT) - 1])
def test_one_flipped_bit_is_found(tmp_path, at):
    path = make(tmp_path, 1)
    damage(path / SHARD, at=at)
    assert files.faults(path) == [f"{SHARD} does not have its checksum: bytes in it have changed"]


def test_a_missing_and_a_truncated_file_are_told_apart(tmp_path):
    path = make(tmp_path, 1)
    (path / "about.json").unlink()
    (path / SHARD).write_bytes(CONTENT[:-1])
    assert sorted(files.faults(path)) == [
        "__0_0.distcp has 76,799 bytes instead of 76,800",
        "about.json is missing",
    ]


def test_the_manifest_itself_may_be_damaged_anywhere(tmp_path):
    path = make(tmp_path, 1)
    manifest = path / "manifest.json"
    whole = manifest.read_text()
    meant = json.loads(whole)
    for at in range(len(whole)):
        manifest.write_text(whole)
        damage(manifest, at=at)
        try:
            same = json.loads(manifest.read_text()) == meant
        except ValueError:
            same = False
        assert bool(files.faults(path)) != same, whole[max(0, at - 9) : at + 9]
    manifest.write_text(whole[: len(whole) // 2])
    assert "manifest.json cannot be read" in files.faults(path)[0]
    manifest.unlink()
    assert files.faults(path) == ["manifest.json is missing"]


def test_ranks_share_the_reading(tmp_path):
    path = make(tmp_path, 1)
    damage(path / SHARD)
    damage(path / "about.json")
    shares = [files.faults(path, rank=rank, world_size=3) for rank in range(3)]
    assert sorted(len(share) for share in shares) == [0, 1, 1]


def test_the_newest_and_the_best_are_kept(tmp_path):
    for step, accuracy in enumerate([0.5, 0.9, 0.9, 0.7, None, None], start=1):
        make(tmp_path, step, accuracy)
        files.retain(tmp_path, step=step, keep=2)
    assert [path.name[-1] for path in files.checkpoints(tmp_path)] == ["3", "5", "6"]
    assert files.best(tmp_path) == files.folder_of(tmp_path, 3), "of equals the newest"
    assert len(list((tmp_path / "checkpoints").iterdir())) == 3


def test_the_best_is_found_among_those_verified_on_the_sets_in_use(tmp_path):
    """Scores on an easier set, from before eval.sets changed, keep no checkpoint."""
    sets = [("easy", 0.99), ("easy", 0.98), ("hard", 0.7), ("hard", 0.6), ("hard", 0.65)]
    for step, (name, accuracy) in enumerate(sets, start=1):
        scores = {name: {"accuracy": accuracy}}
        files.write_scores(make(tmp_path, step), scores, compared_by=[name])
        files.retain(tmp_path, step=step, keep=1)
    assert files.best(tmp_path) == files.folder_of(tmp_path, 3)
    assert [path.name[-1] for path in files.checkpoints(tmp_path)] == ["3", "4", "5"]


def test_the_best_is_that_of_the_sets_that_checkpoints_are_compared_by(tmp_path):
    """Of each set the first figure counts; who lacks one of the sets takes no part."""
    compared_by = ["lfw", "ijbc"]
    found = [
        {"lfw": {"accuracy": 0.9, "auc": 0.1}, "ijbc": {"tar@far=0.0001": 0.7}},
        {"lfw": {"accuracy": 0.8, "auc": 1.0}, "ijbc": {"tar@far=0.0001": 0.9}},
        {"lfw": {"accuracy": 0.99, "auc": 0.1}},
        {"lfw": {"accuracy": 0.7}, "ijbc": {"tar@far=0.0001": 0.7}, "tiny": {"rank-1": 1.0}},
    ]
    for step, scores in enumerate(found, start=1):
        files.write_scores(make(tmp_path, step), scores, compared_by=compared_by)
    means = [files.read_about(path)["accuracy"] for path in files.checkpoints(tmp_path)]
    assert means == [pytest.approx(0.8), pytest.approx(0.85), None, pytest.approx(0.7)]
    assert files.best(tmp_path) == files.folder_of(tmp_path, 2)


def test_scores_of_one_set_after_another_add_up(tmp_path):
    path = make(tmp_path, 1)
    for name, accuracy in (("a", 0.5), ("b", 0.7), ("a", 0.6)):
        files.write_scores(path, {name: {"accuracy": accuracy}}, compared_by=["a", "b"])
    about = files.read_about(path)
    assert about["scores"] == {"a": {"accuracy": 0.6}, "b": {"accuracy": 0.7}}
    assert about["accuracy"] == pytest.approx(0.65)


def test_scores_that_older_versions_wrote_compare_by_all_their_sets(tmp_path):
    """They had no other way."""
    for step, accuracy in enumerate([0.9, 0.8], start=1):
        content = {"scores": {"lfw": {"accuracy": accuracy}}, "accuracy": accuracy}
        (make(tmp_path, step) / "scores.json").write_text(json.dumps(content))
    newest = make(tmp_path, 3)
    files.write_scores(newest, {"lfw": {"accuracy": 0.85}}, compared_by=["lfw"])
    assert files.best(tmp_path) == files.folder_of(tmp_path, 1)


def test_what_lies_beyond_the_step_does_not_count_and_stays(tmp_path):
    """Until it is known to be worth nothing: nothing says here that step 9 is damaged."""
    for step, accuracy in [(1, 0.1), (2, 0.2), (9, 0.9), (3, None)]:
        make(tmp_path, step, accuracy)
    files.retain(tmp_path, step=3, keep=1)
    assert [path.name[-1] for path in files.checkpoints(tmp_path)] == ["2", "3", "9"]
    files.remove_beyond(tmp_path, 2)
    assert [path.name[-1] for path in files.checkpoints(tmp_path)] == ["2"]


def test_one_that_is_passed_over_counts_no_more_and_goes_with_the_next_save(tmp_path):
    make(tmp_path, 1)
    damaged = make(tmp_path, 9)
    files.pass_over(damaged)
    assert [path.name[-1] for path in files.checkpoints(tmp_path)] == ["1"]
    assert (damaged / SHARD).exists()
    make(tmp_path, 2)
    assert not damaged.exists()


def fail_to_read(patch: pytest.MonkeyPatch, part: str, *, times: int, number: int) -> list[str]:
    """The first reads of paths with this part in them fail, as on a network disk that was away."""
    failed: list[str] = []

    def failing(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *args: Any, **more: Any) -> Any:
            if part in str(path) and len(failed) < times:
                failed.append(str(path))
                raise OSError(number, os.strerror(number), str(path))
            return real(path, *args, **more)

        return call

    patch.setattr(files.os, "listdir", failing(os.listdir))
    patch.setattr(files.os, "stat", failing(os.stat))
    patch.setattr(io, "open", failing(io.open))
    patch.setattr(disk.time, "sleep", lambda seconds: None)
    return failed


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.EACCES, errno.ENOMEM])
@pytest.mark.parametrize("part", ["checkpoints", "manifest.json", SHARD])
def test_what_the_disk_does_not_give_for_a_moment_is_not_damaged(
    tmp_path, monkeypatch, part, number
):
    path = make(tmp_path, 9)
    failed = fail_to_read(monkeypatch, part, times=2, number=number)
    assert files.checkpoints(tmp_path) == [path]
    assert files.faults(path) == []
    assert len(failed) == 2


@pytest.mark.parametrize("part", ["checkpoints", "manifest.json", SHARD])
def test_what_the_disk_does_not_give_at_all_is_refused_with_the_reason(tmp_path, monkeypatch, part):
    """Neither damaged nor absent, and nothing is cleared away as if it were."""
    path = make(tmp_path, 9)
    with monkeypatch.context() as patch:
        fail_to_read(patch, part, times=999, number=errno.EIO)
        with pytest.raises(files.UnreadableError, match=r"cannot be read, .*it may be whole.*move"):
            files.checkpoints(tmp_path) and files.faults(path)
        if part == "manifest.json":
            with pytest.raises(files.UnreadableError):
                files.clear(files.folder_of(tmp_path, 12))
    assert files.faults(path) == []


@pytest.mark.parametrize("part", ["about.json", "scores.json"])
def test_a_read_error_costs_the_best_checkpoint_not_its_place(tmp_path, monkeypatch, part):
    for step in (1, 2, 3, 4):
        scores = {"set": {"accuracy": 0.9 - 0.1 * step}}
        files.write_scores(make(tmp_path, step), scores, compared_by=["set"])
    with monkeypatch.context() as patch:
        fail_to_read(patch, part, times=999, number=errno.ESTALE)
        with pytest.raises(files.UnreadableError):
            files.retain(tmp_path, step=4, keep=2)
    files.retain(tmp_path, step=4, keep=2)
    assert [path.name[-1] for path in files.checkpoints(tmp_path)] == ["1", "3", "4"]


@pytest.mark.parametrize("how", ["a dangling link", "a file"])
def test_a_folder_of_checkpoints_that_is_none_is_refused(tmp_path, how):
    """As where the disk that it is a link to is not mounted: the run would start over."""
    folder = tmp_path / "checkpoints"
    folder.symlink_to("nowhere") if how == "a dangling link" else folder.touch()
    there = "a link to nowhere, where no" if how == "a dangling link" else "a file"
    with pytest.raises(files.CheckpointError, match=f"{folder} is {there}.*Mount or restore it"):
        files.checkpoints(tmp_path)


def test_one_of_the_same_step_is_replaced_and_remains_are_cleared(tmp_path):
    path = make(tmp_path, 4)
    damage(path / SHARD)
    for left in ("step_000000003", "partial_step_000000002"):  # the latter by an older version
        (tmp_path / "checkpoints" / left).mkdir()
        (tmp_path / "checkpoints" / left / SHARD).write_bytes(CONTENT)
    assert files.faults(make(tmp_path, 4)) == []
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_000000004"]


def test_what_is_half_written_or_half_removed_is_no_checkpoint(tmp_path, monkeypatch):
    """The process dies when the manifest is to be named, or as the files begin to go."""
    whole, half = make(tmp_path, 1), make(tmp_path, 2)

    class Died(BaseException):
        pass

    def die(*args):
        raise Died

    with monkeypatch.context() as patch:
        patch.setattr(files, "replace", die)
        with pytest.raises(Died):
            make(tmp_path, 3)
    assert files.checkpoints(tmp_path) == [whole, half]
    with monkeypatch.context() as patch:
        patch.setattr(files.shutil, "rmtree", die)
        with pytest.raises(Died):
            files.remove(half)
    assert (half / SHARD).exists()
    assert files.checkpoints(tmp_path) == [whole]
    assert files.faults(whole) == []


def test_what_cannot_be_cleared_stops_only_its_own_step(tmp_path, monkeypatch, caplog):
    stuck = files.folder_of(tmp_path, 1)
    stuck.mkdir(parents=True)

    def refuse(path, real=files.shutil.rmtree):
        if path == stuck:
            raise OSError(39, "Directory not empty")
        real(path)

    monkeypatch.setattr(files.shutil, "rmtree", refuse)
    assert files.faults(make(tmp_path, 2)) == []
    assert "step_000000001, left by an interrupted save, is not removed" in caplog.text
    with pytest.raises(OSError, match="not empty"):
        make(tmp_path, 1)


def test_a_folder_that_is_no_checkpoint_says_so(tmp_path):
    with pytest.raises(files.CheckpointError, match=r"no readable about\.json .*expected a check"):
        files.read_about(tmp_path)


def test_only_a_runs_own_names_are_checkpoints_and_one_unreadable_stops_no_retention(tmp_path):
    for step in (5, 10, 15, 20):
        make(tmp_path, step)
    (tmp_path / "checkpoints" / "step_000000015" / "about.json").write_text("{")
    for name in ("step_000000010_mine", "step_5"):
        (tmp_path / "checkpoints" / name).mkdir()
        (tmp_path / "checkpoints" / name / "manifest.json").write_text("{}")
    assert [path.name[-2:] for path in files.checkpoints(tmp_path)] == ["05", "10", "15", "20"]
    files.retain(tmp_path, step=20, keep=2)
    assert [path.name[-2:] for path in files.checkpoints(tmp_path)] == ["15", "20"]
    assert (tmp_path / "checkpoints" / "step_000000010_mine").exists()
