"""Who the labels of a .rec are: their names, from the manifest that was packed beside it."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.named_path import MALFORMED
from pipeline.record_file import fingerprint


def manifest_path(rec: Path) -> Path:
    return rec.with_suffix(".json")


def read_names(rec: Path, *, damaged: bool = False) -> list[str] | None:
    """The identities' names by label; None without a manifest, or where it is another file's.

    damaged: the file is known to be, so that its bytes need not be the manifest's; it may be
        shorter, but no longer.
    """
    try:
        about = json.loads(manifest_path(rec).read_text())
        if damaged and rec.stat().st_size > about["bytes"]:
            return None
        if not damaged and about["fingerprint"] != fingerprint(rec):
            return None
        return [str(name) for name in about["names"]]
    except (OSError, *MALFORMED):
        return None
