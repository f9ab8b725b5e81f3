"""Who the labels of a .rec are: their names, from the manifest that was packed beside it."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.index import fingerprint


def manifest_path(rec: Path) -> Path:
    return rec.with_suffix(".json")


def read_names(rec: Path) -> list[str] | None:
    """The identities' names by label; None without a manifest, or where it is another file's."""
    try:
        about = json.loads(manifest_path(rec).read_text())
        if about["fingerprint"] != fingerprint(rec):
            return None
        return [str(name) for name in about["names"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
