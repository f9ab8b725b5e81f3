"""What a network was trained on, and under which license: from a set's manifest to its card."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from pipeline.named_path import as_text
from pipeline.records.manifest import UNKNOWN, read_provenance
from training.config import Config

# From the freest to the strictest: what the name of a license has in it. Any other name is taken
# for stricter than these: nobody here has read it.
_STRICTER = (
    ("cc0", "public domain", "unlicense"),
    ("mit", "bsd", "apache", "cc-by-4", "cc-by-3", "cc-by-2"),
    ("cc-by-sa", "gpl"),
    ("cc-by-nd",),
    ("cc-by-nc", "non-commercial", "noncommercial"),
    ("research",),
)


def provenance(config: Config) -> list[dict[str, str]]:
    """Name, origin and license of every training file; a checkpoint keeps them."""
    return [
        {"name": name_of(file), **asdict(read_provenance(Path(file)))} for file in config.data.files
    ]


def name_of(file: str | Path) -> str:
    """Of a training file, without the folders that it lies in."""
    path = Path(file)
    return as_text(path.parent.name if path.name == "train.rec" else path.name)


def strictest(licenses: Iterable[str]) -> str:
    """The one that allows least; "unknown" where one is, or there is none."""
    found = sorted(set(licenses))
    if not found or UNKNOWN in found:
        return UNKNOWN
    return max(found, key=_strictness)


def _strictness(license: str) -> int:
    lower = license.lower()
    found = [place for place, words in enumerate(_STRICTER) if any(word in lower for word in words)]
    return max(found, default=len(_STRICTER))
