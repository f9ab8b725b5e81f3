"""Whose a run's folder is, and which checkpoint a run goes on from."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import torch.distributed as dist

from pipeline.named_path import PathError
from training.config import Config
from training.named_files import check_named_files
from training.saving.files import CheckpointError, checkpoints, faults, read_about


def claim(output: Path, config: Config, *, facts: dict[str, Any]) -> None:
    """Make `output` this run's folder; raise CheckpointError when it is anything else's.

    `facts` are what identifies the run: model, number of classes, dataset. They are written down
    at first.
    """
    if output.exists() and not output.is_dir():
        raise CheckpointError(f"run.output={output} is a file: choose a folder")
    output.mkdir(parents=True, exist_ok=True)
    path = output / "run.json"
    if not path.exists():
        there = sorted(e.name for e in output.iterdir() if e.name != "run.unfinished")
        if there:
            names = ", ".join(there[:4])
            raise CheckpointError(
                f"run.output={output} is not empty ({names}) and holds no run: choose another "
                "folder, so that nothing in it is lost"
            )
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(facts, indent=2))
        unfinished.replace(path)
        return
    _require_same(
        json.loads(path.read_text()),
        facts,
        what=f"run.output={output} holds another run",
        remedy="Choose another run.output, or restore that configuration to go on",
    )
    started_again = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))  # by torchrun
    if config.run.resume == "never" and not started_again:
        raise CheckpointError(
            f"run.output={output} already holds this run and run.resume=never: choose another "
            "run.output, or run.resume=auto to go on"
        )


def choose_checkpoint(output: Path, config: Config, *, facts: dict[str, Any]) -> Path | None:
    """The newest checkpoint of `output` whose checksums hold; else what run.resume names.

    None is for a run that starts anew. Call it on every rank: each checks a share of the files, and
    all get the same answer. Where a checkpoint is damaged, a warning names file and fault, and the
    one before it is taken.

    Raises CheckpointError, on every rank, where none is whole, where run.resume names none or an
    older one of this very run, and where the one it names is of another model, head or dataset.
    """
    own, named = checkpoints(output), config.run.resume
    candidates = own if named in ("auto", "never") else _named(config, own)
    (candidates,) = from_main([candidates])
    if isinstance(candidates, CheckpointError):
        raise candidates
    if not candidates:
        return None
    path = newest_whole(candidates)
    _require_same(
        read_about(path)["facts"],
        facts,
        what=f"{path} is of another run",
        remedy="Choose another run.resume, or restore that configuration to go on",
    )
    return path


def _named(config: Config, own: list[Path]) -> list[Path] | CheckpointError:
    """The checkpoints that run.resume=PATH leaves to choose from, oldest first."""
    path = Path(config.run.resume)
    try:
        check_named_files(config, "run.resume")
    except PathError as error:
        # What the run began from may be gone when it goes on.
        return own or CheckpointError(str(error))
    is_checkpoint = (path / "manifest.json").is_file()
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

    Raises CheckpointError where there is none.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    told = []
    for path in reversed(candidates):
        everyone: list[list[str]] = [[] for _ in range(world_size)]
        dist.all_gather_object(everyone, faults(path, rank=rank, world_size=world_size))
        # Without a manifest all ranks say the same.
        found = list(dict.fromkeys(fault for theirs in everyone for fault in theirs))
        if not found:
            return path
        told.append(f"{path} is damaged: {'; '.join(found)}")
        if rank == 0:
            logging.warning("%s. Trying the checkpoint before it", told[-1])
    raise CheckpointError(
        f"no checkpoint is whole. {'. '.join(told)}. Restore one of them from a copy, or start "
        "again in another run.output"
    )


def from_main(values: list[Any]) -> list[Any]:
    """What rank 0 has: folders on a network may look different elsewhere for a moment."""
    dist.broadcast_object_list(values, src=0)
    return values


def _require_same(held: dict[str, Any], facts: dict[str, Any], *, what: str, remedy: str) -> None:
    """Raise CheckpointError naming the first of the facts held that differs."""
    facts = json.loads(json.dumps(facts))
    for key in facts:
        if key in held and held[key] != facts[key]:
            raise CheckpointError(
                f"{what}: its {key} is {held[key]!r}, this one's is {facts[key]!r}. {remedy}"
            )
