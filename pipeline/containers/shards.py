"""Which files of a folder make one set."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pipeline.records.recordio import RecordError

_SPLIT = re.compile(r"(train|test|validation|valid|val|dev|eval)(?![A-Za-z0-9])")


def shards_of(path: Path, suffix: str) -> list[Path]:
    """A file itself; of a folder, those of its files that are trained on.

    Raises RecordError as `train_split`.
    """
    return train_split(files_in(path, suffix))[0] if path.is_dir() else [path]


def files_in(folder: Path, suffix: str) -> list[Path]:
    """Files with a suffix in a folder, or in its `data`, as on Hugging Face's hub; in order."""
    for place in (folder, folder / "data"):
        inside = sorted(place.iterdir()) if place.is_dir() else []
        named = [one for one in inside if one.suffix.lower() == suffix and one.name[0] != "."]
        found = [one for one in named if not one.is_dir()]  # an identity may be called so
        if found:
            return found
    return []


def train_split(files: Sequence[Path]) -> tuple[list[Path], str]:
    """Those of the train split, where files are named by splits, and how many of which there are.

    Raises RecordError for several splits of which none is "train".
    """
    splits: dict[str, list[Path]] = {}
    for file in files:
        named = _SPLIT.match(file.name)
        splits.setdefault(named[1] if named else "", []).append(file)
    if len(splits) < 2:
        return list(files), ""
    counts = ", ".join(f"{len(of)} of {split or 'no split'}" for split, of in splits.items())
    if "train" not in splits:
        raise RecordError(
            f"{files[0].parent} holds files of several splits: {counts}. Name those to take"
        )
    return splits["train"], counts
