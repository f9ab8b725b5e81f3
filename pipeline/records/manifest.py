"""The manifest beside a packed .rec: a JSON file that says where the set is from."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.named_path import MALFORMED
from pipeline.records.record_file import fingerprint

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Provenance:
    """Whose images a set has, as whoever packed it says.

    Attributes:
        origin: where they are from, such as the address of the set's page.
        license: under which they are used, an SPDX name such as "cc-by-nc-4.0", or in words.
    """

    origin: str = UNKNOWN
    license: str = UNKNOWN


def manifest_path(rec: Path) -> Path:
    return rec.with_suffix(".json")


def write_manifest(
    rec: Path,
    *,
    source: Sequence[Path],
    options: Mapping[str, object],
    names: Sequence[str],
    images: int,
    kinds: Mapping[str, int],
    provenance: Provenance = Provenance(),
) -> Path:
    """Write the manifest of `rec`; `names` are the identities' by label, `kinds` count images."""
    path = manifest_path(rec)
    about = {
        "rec": rec.name,
        "bytes": rec.stat().st_size,
        "sha256": _sha256(rec),
        "fingerprint": fingerprint(rec),
        "images": images,
        "identities": len(names),
        "kinds": dict(kinds),
        "source": [os.fsencode(one).decode(errors="surrogateescape") for one in source],
        **asdict(provenance),
        "options": {key: value for key, value in options.items() if value is not None},
        "names": list(names),
    }
    # Names that are no text (a folder's bytes) stay writable: json escapes them.
    path.write_text(json.dumps(about, indent=1) + "\n")
    return path


def read_names(rec: Path, *, damaged: bool = False, content: str | None = None) -> list[str] | None:
    """The identities' names by label; None without a manifest, or where it is another file's.

    Args:
        damaged: the file is known to be, so that its bytes need not be the manifest's; it may be
            shorter, but no longer.
        content: the fingerprint of the .rec, where it is known.
    """
    about = _read(rec, damaged=damaged, content=content)
    try:
        return [str(name) for name in about["names"]] if about else None
    except MALFORMED:
        return None


def read_provenance(rec: Path, *, damaged: bool = False) -> Provenance:
    """Of the images in a .rec; unknown without a manifest, or where it is another file's."""
    about = _read(rec, damaged=damaged) or {}
    return Provenance(*(str(about.get(key) or UNKNOWN) for key in ("origin", "license")))


def _read(rec: Path, *, damaged: bool, content: str | None = None) -> dict[str, Any] | None:
    """The manifest, if it is this file's."""
    try:
        about = json.loads(manifest_path(rec).read_text())
        if damaged and rec.stat().st_size > about["bytes"]:
            return None
        if not damaged and about["fingerprint"] != (content or fingerprint(rec)):
            return None
        return about
    except (OSError, *MALFORMED):
        return None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
