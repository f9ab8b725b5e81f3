"""Whose a run's folder is, and which checkpoint a run resumes from."""

from __future__ import annotations

import json
import logging
import os
import re
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist

from pipeline.named_path import MALFORMED, PathError
from pipeline.whole_file import write_whole
from training.config import Config
from training.distributed import from_main, of_all_ranks, together
from training.named_files import check_named_files
from training.saving import files, lock
from training.saving.disk import Disk, probe
from training.saving.files import CheckpointError, checkpoints, faults, is_complete, read_about
from training.saving.settings import compare_settings

# Facts that say little by themselves are shown with the files that they are digests of. Those may
# be moved: they are not compared.
FILES, OF_FILES = "data files", ("dataset", "records and labels")
_LEFT_BY_STARTS = re.compile(
    rf"run\.unfinished|{re.escape(lock.FILE)}|lock\.\d+\.unfinished|probe_\d+"
)


class NoneWholeError(CheckpointError):
    """A run has checkpoints, and all of them are damaged."""


def open_output(output: Path) -> tuple[lock.Lock, Disk]:
    """Create a run's folder if need be, hold it, and find out what its checkpoints' disk can do.

    Raises CheckpointError where it holds what is not a run's, where a process holds it, or where
    nothing can be saved.
    """
    _require_folder(output)
    folder, held = output / "checkpoints", lock.Lock(output)
    try:
        output.mkdir(parents=True, exist_ok=True)
        _refuse_others(output)
        held.acquire()  # first: what another process tries out must not be removed
        folder.mkdir(exist_ok=True)
        probe(output)
        return held, probe(folder)  # which may be a link to another disk
    except OSError as error:
        held.release()
        raise CheckpointError(
            f"run.output={output}: nothing can be saved there ({error}). Make room, allow writing, "
            "or choose a folder on another disk"
        ) from error


def claim(output: Path, config: Config, *, facts: dict[str, Any]) -> None:
    """Make a folder from `open_output` this run's; CheckpointError when it is another run's.

    `facts` are what identifies the run: model, number of classes, dataset. They are written down
    at first, and bind from the first checkpoint on: a try that saved nothing owns no folder.
    """
    written = _require_ours(output, config, facts)
    if written is None or not checkpoints(output):
        path = output / "run.json"
        write_whole(path, json.dumps(facts, indent=2), aside=path.with_suffix(".unfinished"))


def foresee(config: Config, *, facts: dict[str, Any], total_steps: int) -> str:
    """See that a run of these facts may begin or go on in its run.output; call it on every rank.

    Writes nothing and reads no weights, so checksums are not compared. Returns where it would
    begin, in words.

    Raises CheckpointError as `open_output`, `claim`, `choose_checkpoint`, `require_settings` and
    `require_steps` do.
    """
    output = Path(config.run.output)

    def look() -> None:
        _require_folder(output)
        if output.exists():
            _refuse_others(output)
            _require_ours(output, config, facts)

    together(look)
    candidates = _candidates(config, output)
    if not candidates:
        return "at step 0"
    path = candidates[-1]
    _require_facts(path, facts)
    require_settings(path, output, config)
    done = read_about(path)["step"]
    require_steps(path, output, done=done, total=total_steps)
    return f"at step {done}, of {path}"


def starts_fresh(config: Config) -> bool:
    """Whether a run begins at step 0, where run.init_from counts; call it on every rank."""
    begun = from_main(together(lambda: checkpoints(Path(config.run.output))))
    return not begun and config.run.resume in ("auto", "never")


def _require_folder(output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise CheckpointError(f"run.output={output} is a file: choose a folder")


def _require_ours(output: Path, config: Config, facts: dict[str, Any]) -> dict[str, Any] | None:
    """Raise CheckpointError where a folder's checkpoints are another run's, or none may be there.

    Returns what run.json says.
    """
    path, begun = output / "run.json", checkpoints(output)
    written = _read_facts(path)
    if begun:
        # Where the newest is damaged, the one before it says the same.
        saved = written or next(filter(None, map(files.facts, reversed(begun))), {})
        if written is None and "imported from" not in saved:
            logging.warning("%s is missing or damaged: the checkpoints say the same", path)
        _require_same(
            saved,
            facts,
            what=f"run.output={output} holds another run",
            remedy="Choose another run.output, or restore what it had to go on",
        )
    started_again = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))  # by torchrun
    if begun and config.run.resume == "never" and not started_again:
        raise CheckpointError(
            f"run.output={output} already holds this run and run.resume=never: choose another "
            "run.output, or run.resume=auto to go on"
        )
    return written


def _read_facts(path: Path) -> dict[str, Any] | None:
    """What run.json says; None where it is missing or damaged, as by a power cut."""
    content = files.read(path)
    try:
        facts = json.loads(content or b"")
    except MALFORMED:
        return None
    return facts if isinstance(facts, dict) else None


def _refuse_others(output: Path) -> None:
    """Raise CheckpointError where a folder holds files and no run."""
    # Checkpoints say themselves whose they are: run.json may be lost where somebody removed the
    # folder while the run went on.
    if checkpoints(output) or (output / "run.json").exists():
        return
    left = {name for name in os.listdir(output) if _LEFT_BY_STARTS.fullmatch(name)}
    folder = output / "checkpoints"
    if folder.is_dir() and all(map(_LEFT_BY_STARTS.fullmatch, os.listdir(folder))):
        left.add(folder.name)
    there = sorted({*os.listdir(output)} - left)
    if there:
        raise CheckpointError(
            f"run.output={output} is not empty ({', '.join(there[:4])}) and holds no run: choose "
            "another folder, so that nothing in it is lost"
        )


def choose_checkpoint(output: Path, config: Config, *, facts: dict[str, Any]) -> Path | None:
    """The newest checkpoint of `output` whose checksums hold; else what run.resume names.

    None is for a run that starts at step 0. Call it on every rank: each checks a share of the files
    and all get the same answer. Where a checkpoint is damaged, a warning names file and fault, and
    the one before it is taken; of the run's own it counts no more, and the next save removes it.

    Raises CheckpointError, on every rank, where none is whole, where one cannot be read, where
    run.resume names none or an older one of this very run, and where the one it names is of another
    model, head or dataset.
    """
    candidates = _candidates(config, output)
    if not candidates:
        return None
    path = newest_whole(candidates)
    _require_facts(path, facts)
    own = from_main(together(lambda: checkpoints(output)))
    if path in own:
        damaged = own[own.index(path) + 1 :]
        together(lambda: dist.get_rank() == 0 and [files.pass_over(newer) for newer in damaged])
    return path


def require_settings(path: Path, output: Path, config: Config) -> list[str]:
    """What differs from the configuration that `path` was saved with, a line each.

    Call it on every rank. Raises CheckpointError, on every rank, where a run would resume in its
    own `output` with settings that change the result; one that begins in another may.
    """
    try:
        saved = json.loads((path / "config.json").read_text()) if dist.get_rank() == 0 else {}
    except FileNotFoundError:
        saved = {}
    saved = from_main(saved)
    if not saved:
        return []
    differ = compare_settings(saved, config)
    if differ.binding and _is_of(path, output):
        raise CheckpointError(
            f"{path} was saved with other settings: {'; '.join(differ.binding)}. They change the "
            "result: set them back to continue, or start a new run with them from this checkpoint: "
            f"another run.output and run.resume={path}"
        )
    return [*differ.binding, *differ.free]


def require_steps(path: Path, output: Path, *, done: int, total: int) -> None:
    """Raise CheckpointError where a run that begins at another's checkpoint has no step to do."""
    if done >= total and not _is_of(path, output):
        raise CheckpointError(
            f"run.resume={path} has done {done} steps, and this run has {total}: nothing would be "
            f"trained. Raise run.epochs, or start from its weights: run.init_from={path}"
        )


def _candidates(config: Config, output: Path) -> list[Path]:
    """The checkpoints that a run may begin at, oldest first; the same on every rank."""
    own, named = together(lambda: checkpoints(output)), config.run.resume
    found = from_main(own if named in ("auto", "never") else _named(config, own))
    if isinstance(found, CheckpointError):
        raise found
    return found


def _require_facts(path: Path, facts: dict[str, Any]) -> None:
    _require_same(
        read_about(path)["facts"],
        facts,
        what=f"{path} is of another run",
        remedy="Choose another run.resume, or restore what it had to go on",
    )


def _is_of(path: Path, output: Path) -> bool:
    """Whether a checkpoint is one of the run in `output`."""
    return path.parent.resolve() == (output / "checkpoints").resolve()


def _named(config: Config, own: list[Path]) -> list[Path] | CheckpointError:
    """The checkpoints that run.resume=PATH leaves to choose from, oldest first."""
    path, choice = files.split_choice(config.run.resume)
    try:
        check_named_files(config, "run.resume")
        path = files.choose(path, choice) if choice else path
    except (PathError, CheckpointError) as error:
        # What the run began from may be gone when it goes on.
        return own or CheckpointError(str(error))
    is_checkpoint = is_complete(path)
    there = [path] if is_checkpoint else checkpoints(path)
    if not there:
        return CheckpointError(
            f"run.resume={path} holds no checkpoint: expected auto, never, a run's folder, or a "
            "checkpoint's own folder, RUN/checkpoints/step_…"
        )
    if is_checkpoint and path.resolve() in [older.resolve() for older in own[:-1]]:
        return CheckpointError(
            f"run.resume={path} is not the newest checkpoint of run.output, which is "
            f"{own[-1].name}: to go back to it choose another run.output, so that none is lost"
        )
    # What was named is where the run began: interrupted, the same command goes on.
    return own or there


def newest_whole(candidates: list[Path]) -> Path:
    """The last of these folders whose checksums hold; call it on every rank.

    Raises, on every rank, NoneWholeError where there is none, UnreadableError where one cannot be
    read.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    damage = []
    for path in reversed(candidates):
        mine = together(partial(faults, path, rank=rank, world_size=world_size))
        # Without a manifest all ranks say the same.
        found = list(dict.fromkeys(fault for theirs in of_all_ranks(mine) for fault in theirs))
        if not found:
            return path
        damage.append(f"{path} is damaged: {'; '.join(found)}")
        if rank == 0:
            logging.warning("%s. Trying the checkpoint before it", damage[-1])
    raise NoneWholeError(
        f"no checkpoint is whole. {'. '.join(damage)}. Restore one of them from a copy, or start "
        "again in another run.output"
    )


def _require_same(held: dict[str, Any], facts: dict[str, Any], *, what: str, remedy: str) -> None:
    """Raise CheckpointError naming all of the facts held that differ."""
    facts = json.loads(json.dumps(facts))
    differ = [
        _difference(held, facts, key)
        for key in facts
        if key in held and held[key] != facts[key] and key != FILES
    ]
    if differ:
        raise CheckpointError(f"{what}: {'; '.join(differ)}. {remedy}")


def _difference(held: dict[str, Any], facts: dict[str, Any], key: str) -> str:
    if key in OF_FILES and FILES in held and held[FILES] == facts.get(FILES):
        return f"its {key}, of {held[FILES]}, changed since then"
    return f"its {key} is {_worded(held, key)}, this one's is {_worded(facts, key)}"


def _worded(facts: dict[str, Any], key: str) -> str:
    if key in OF_FILES and FILES in facts:
        return f"that of {facts[FILES]} ({facts[key]})"
    return repr(facts[key])
