"""Folder names for identities whose names come from somebody else's file."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

_DEVICES = {"CON", "PRN", "AUX", "NUL", *(f"{d}{n}" for d in ("COM", "LPT") for n in range(1, 10))}
_FORBIDDEN = set('%/\\:*?"<>|')
_LONGEST = 200  # bytes; file systems end at 255


def name_of(folder: Path) -> str:
    """A folder's name as UTF-8 text, whatever the locale; other bytes stay Python's surrogates."""
    return os.fsencode(folder.name).decode(errors="surrogateescape")


def on_disk(name: str) -> str:
    """UTF-8 text as a name that the locale's own functions take: what `name_of` undoes."""
    return os.fsdecode(name.encode(errors="surrogateescape"))


def folder_name(name: str) -> str:
    """`name` as the name of one folder inside another, on any system; itself where it can be.

    What separates paths, means something to a system or cannot be seen becomes %XX of its UTF-8
    bytes, `%` too, so that two names never meet. That goes for a leading dot (hidden, or the way
    out: `..`), a trailing dot or space and the device names of Windows (`NUL`, `com1.x`). A name
    that is too long ends in a digest.
    """
    last = len(name) - 1
    device = name.partition(".")[0].rstrip().upper() in _DEVICES
    escaped = "".join(
        _escape(c)
        if c in _FORBIDDEN
        or not c.isprintable()
        or (i == 0 and (c == "." or device))
        or (i == last and c in ". ")
        else c
        for i, c in enumerate(name)
    )
    if len(escaped.encode()) > _LONGEST:
        digest = hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=16).hexdigest()
        short = escaped.encode()[: _LONGEST - 40].decode(errors="ignore")
        return f"{short}%~{digest}"
    return escaped or "%"


def _escape(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode(errors="surrogatepass"))
