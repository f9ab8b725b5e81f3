"""Checkpoints as folders: which are complete, whether their bytes hold, which of them are kept.

OUTPUT/checkpoints/step_N is complete where it has a manifest, which is written once all else is on
the disk, and removed before all else: so it needs no folder to be renamed, which mounted buckets
refuse. Beside the files of torch.distributed.checkpoint it has

    config.json      the resolved configuration
    about.json       format, step, what identifies the run, versions, number of ranks, the user's
                     own parts
    manifest.json    bytes and BLAKE2b (128 bits) of every other file

and, once its state has been verified, which may take long and may fail,

    scores.json      the scores of every set, and the mean by which checkpoints are compared; not in
                     the manifest

A file that the disk does not give is not damaged: that is tried again, then refused.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import stat
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from facestream import UserError
from pipeline.named_path import MALFORMED
from pipeline.sync import sync
from pipeline.whole_file import replace
from training.saving.digests import Digest, digest_of
from training.saving.disk import NOT_THERE, persistently, sync_folder

FORMAT = 1  # of a checkpoint; it rises where older versions would read a new one wrongly

_MANIFEST, _SCORES = "manifest.json", "scores.json"
_DAMAGED = "manifest.damaged"  # the manifest of one that was passed over
_NAME = re.compile(r"step_\d{9}")
_OLD_PARTIAL = "partial_*"  # what earlier versions called a checkpoint that was not complete
_SOUND = 2  # checkpoints to go back to that stay, whatever run.keep says


Scores = Mapping[str, Mapping[str, float]]  # test set → score → value, its main one first
T = TypeVar("T")


class CheckpointError(UserError):
    """A checkpoint that does not fit the run: says which, what differs and how to mend it."""


class UnreadableError(CheckpointError):
    """A file that is there and that the disk does not give: it may be whole."""


def split_choice(given: str) -> tuple[Path, str]:
    """RUN@CHOICE to both, where RUN is a folder; any other path to itself and nothing."""
    run, at, choice = given.rpartition("@")
    if at and os.path.isdir(run) and not os.path.exists(given):
        return Path(run), choice
    return Path(given), ""


def folder_of(output: Path, step: int) -> Path:
    """Where a run's checkpoint of a step lies."""
    return output / "checkpoints" / f"step_{step:09d}"


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint was written after, by its name."""
    return int(checkpoint.name.removeprefix("step_"))


def is_complete(path: Path) -> bool:
    """Whether all of a checkpoint was written; whether its bytes hold is `faults`' to check."""
    manifest = path / _MANIFEST
    return stat.S_ISREG(_ask(manifest, lambda: manifest.stat().st_mode) or 0)


def checkpoints(output: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first.

    Raises CheckpointError where it cannot be known which there are.
    """
    folder = output / "checkpoints"
    names = _ask(folder, lambda: os.listdir(folder))
    if names is None and os.path.lexists(folder):
        there = "a file"
        if folder.is_symlink():
            there = f"a link to {os.readlink(folder)}, where no folder is"
        raise CheckpointError(
            f"{folder} is {there}: expected the folder of the run's checkpoints. Mount or restore "
            "it, or remove this to begin without them"
        )
    paths = (folder / name for name in sorted(names or []) if _NAME.fullmatch(name))
    return [path for path in paths if is_complete(path)]


def newest(output: Path) -> Path | None:
    """The last of them, if there is one; its checksums are `faults`' to check."""
    return next(reversed(checkpoints(output)), None)


def best(output: Path) -> Path | None:
    """The one with the best mean of main figures, if any; of equals the newest.

    Only those count that are compared by the same sets as the newest of them: scores of others
    say nothing about which is better.
    """
    return _best(checkpoints(output))


def choose(run: Path, choice: str) -> Path:
    """The checkpoint of a run that RUN@CHOICE names: best, or a step.

    Raises CheckpointError, with those that there are, where it has none such.
    """
    if choice == "best":
        found = best(run)
        if found is None:
            raise CheckpointError(
                f"{run}@best: none of its checkpoints was verified. Expected {run} for the newest, "
                f"or {run}@STEP"
            )
        return found
    there = checkpoints(run)
    step = choice.removeprefix("step_")
    wanted = folder_of(run, int(step)) if step.isdecimal() else None
    if wanted not in there:
        names = ", ".join(path.name for path in there) or "none"
        raise CheckpointError(
            f"{run}@{choice}: expected best or the step of a checkpoint, there are {names}"
        )
    return wanted


def read_about(path: Path) -> dict[str, Any]:
    """What about.json says of a checkpoint, its `scores`, and the mean of those that checkpoints
    are compared by, `accuracy`, of the sets in `compared_by`: None if unknown.

    Raises CheckpointError where about.json cannot be read, or is of a newer format.
    """
    content, scores = read(path / "about.json"), _scores(path)
    try:
        if content is None:
            raise ValueError("it is missing")
        about = {"format": 1, "scores": None, "accuracy": None, **json.loads(content), **scores}
        about.setdefault("compared_by", sorted(about["scores"] or ()))
        newer = about["format"] > FORMAT
    except MALFORMED as error:
        raise CheckpointError(
            f"{path} has no readable about.json ({error}): expected a checkpoint's own folder, "
            "RUN/checkpoints/step_…"
        ) from error
    if newer:
        raise CheckpointError(
            f"{path} was saved by a newer version, in the format {about['format']}, and this one "
            f"reads those up to {FORMAT}: install that version to use it"
        )
    return about


def faults(path: Path, *, rank: int = 0, world_size: int = 1) -> list[str]:
    """What is wrong with a checkpoint's files, a line each; nothing where it is whole.

    Reads every file, or this rank's share of them: over 1 GB/s a rank where the disk is as fast.

    Raises UnreadableError where the disk does not give them: what they hold is not known then.
    """
    content = read(path / _MANIFEST)
    if content is None:
        return [f"{_MANIFEST} is missing"]
    try:
        manifest = json.loads(content)["files"]
        expected = {name: (int(d["bytes"]), str(d["blake2b"])) for name, d in manifest.items()}
    except MALFORMED as error:
        return [f"{_MANIFEST} cannot be read ({type(error).__name__}: {error})"]
    # Dealt out by size, so that shards fall on different ranks.
    mine = sorted(expected, key=lambda name: (expected[name], name))[rank::world_size]
    found = (_fault(path / name, *expected[name]) for name in mine)
    return [fault for fault in found if fault]


def clear(final: Path) -> None:
    """Make way for a checkpoint: remove one of the same step, and what interrupted saves left.

    What `pass_over` was called for goes, too. Raises OSError where its own place cannot be cleared,
    CheckpointError where it cannot be known which others are complete.
    """
    if final.exists():
        remove(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    unfinished = (
        path
        for path in final.parent.glob("step_*")
        if _NAME.fullmatch(path.name) and not is_complete(path)
    )
    for path in (*unfinished, *final.parent.glob(_OLD_PARTIAL)):
        try:
            shutil.rmtree(path)
        except OSError as error:
            logging.warning("%s, left by an interrupted save, is not removed: %s", path, error)


def complete(final: Path, *, documents: Mapping[str, Any], digests: Mapping[str, Digest]) -> None:
    """Add documents and, last of all, the manifest to a checkpoint's folder.

    Args:
        documents: what is to be written as JSON, by file name.
        digests: of the files that were digested as they were written, by name; the others are read
            again.
    """
    for name, content in documents.items():
        _write_json(final / name, content)
    files = {
        file.name: digests.get(file.name) or digest_of(file) for file in sorted(final.iterdir())
    }
    # Before the manifest has its name, so that after a power cut it vouches for nothing lost.
    sync_folder(final)
    sync_folder(final.parent)
    unfinished = final / f"{_MANIFEST}.unfinished"
    _write_json(unfinished, {"files": files})
    replace(unfinished, final / _MANIFEST)
    sync_folder(final)


def remove(path: Path) -> None:
    """Remove a checkpoint; what is half removed does not look complete."""
    (path / _MANIFEST).unlink(missing_ok=True)
    sync_folder(path)
    shutil.rmtree(path)


def retain(output: Path, *, step: int, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints up to `step`, the best of them, and the newest
    two that were saved when their last step counted: one of them is what a run goes back to, before
    the last step that counted.

    What lies beyond `step` stays: who knows that it is worth nothing calls `pass_over` or
    `remove_beyond`.
    """
    reached = [path for path in checkpoints(output) if path <= folder_of(output, step)]
    sound = [path for path in reached if not counters(path).get("skipped_in_a_row", 0)]
    kept = {*reached[-keep:], *sound[-_SOUND:], _best(reached)}
    for path in reached:
        if path not in kept:
            remove(path)


def remove_beyond(output: Path, step: int) -> None:
    """Remove the checkpoints after `step`, of a run that goes back to it for good."""
    for path in reversed(checkpoints(output)):
        if path > folder_of(output, step):
            remove(path)


def pass_over(path: Path) -> None:
    """Let a checkpoint that is damaged count no more; its files stay until the next save."""
    replace(path / _MANIFEST, path / _DAMAGED)
    sync_folder(path)


def read(file: Path) -> bytes | None:
    """What a file of a run holds; None where there is none. Raises UnreadableError."""
    return _ask(file, file.read_bytes)


def least_kept(keep: int) -> int:
    """How many `retain` leaves of a sound run's checkpoints, without the best."""
    return max(keep, _SOUND)


def main_figure(scores: Mapping[str, float]) -> tuple[str, float]:
    """The score of a set by which networks are compared: its name and value.

    Raises ValueError where there is none.
    """
    for name, value in scores.items():
        return name, value
    raise ValueError("a set without a score")


def write_scores(path: Path, scores: Scores, *, compared_by: Collection[str]) -> None:
    """Add what was found about its state to a complete checkpoint, beside what is there.

    Args:
        compared_by: the sets of whose main figures the mean says which checkpoint is best; where
            one of them was not scored, this one does not take part.
    """
    scores, mean = {**(_about(path).get("scores") or {}), **scores}, None
    if scores.keys() >= set(compared_by) and compared_by:
        mean = sum(main_figure(scores[name])[1] for name in compared_by) / len(compared_by)
    content = {"scores": scores, "accuracy": mean, "compared_by": sorted(compared_by)}
    unfinished = path / "scores.unfinished"
    _write_json(unfinished, content)
    replace(unfinished, path / _SCORES)


def counters(path: Path) -> dict[str, int]:
    """What a run had counted when it saved a checkpoint; nothing where that is damaged."""
    return _about(path).get("counters", {})


def facts(path: Path) -> dict[str, Any]:
    """What identifies the run that saved a checkpoint; nothing where that is damaged."""
    return _about(path).get("facts", {})


def _about(path: Path) -> dict[str, Any]:
    """As `read_about`, but empty where there is nothing to read: damage is `faults`' to tell."""
    try:
        return read_about(path)
    except UnreadableError:
        raise
    except CheckpointError:
        return {}


def _scores(path: Path) -> dict[str, Any]:
    """What scores.json says; damaged, it counts as missing: then the state is verified again."""
    content = read(path / _SCORES)
    try:
        known = json.loads(content or b"")
        scores, mean = dict(known["scores"]), known["accuracy"]
        compared_by = list(known.get("compared_by", sorted(scores)))
        if mean is not None:
            mean = float(mean)
            if not all(scores[name] for name in compared_by):
                return {}
        return {"scores": scores, "accuracy": mean, "compared_by": compared_by}
    except MALFORMED:
        return {}


def _best(paths: list[Path]) -> Path | None:
    scored = [
        (about["accuracy"], path, about["compared_by"])
        for path in sorted(paths)
        if (about := _about(path)).get("accuracy") is not None
    ]
    comparable = [(a, path) for a, path, sets in scored if sets == scored[-1][2]]
    return max(comparable, default=(None, None))[1]


def _fault(file: Path, size: int, blake2b: str) -> str | None:
    found = _ask(file, lambda: file.stat().st_size)
    if found is not None and found != size:
        return f"{file.name} has {found:,} bytes instead of {size:,}"
    digest = _ask(file, lambda: digest_of(file))
    if digest is None:
        return f"{file.name} is missing"
    if digest["blake2b"] != blake2b:
        return f"{file.name} does not have its checksum: bytes in it have changed"
    return None


def _ask(path: Path, question: Callable[[], T]) -> T | None:
    """What the disk answers about a path; None where there is none. Raises UnreadableError."""
    try:
        return persistently(question)
    except OSError as error:
        if error.errno in NOT_THERE:
            return None
        raise UnreadableError(
            f"{path} cannot be read, tried several times ({error}): it may be whole, so it is "
            "neither passed over nor removed. Look after the disk and start again; or move "
            f"{path.parent} away to go on without it"
        ) from error


def _write_json(file: Path, content: Any) -> None:
    with file.open("w") as stream:
        json.dump(content, stream, indent=2)
        stream.flush()
        sync(stream.fileno())
