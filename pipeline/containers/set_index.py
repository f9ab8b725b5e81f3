"""The index of a set that is no .rec: what one look through it found, for the next start.

It is 4096 bytes of JSON, then the tables: one RECORD of 24 bytes an image, and texts. It lies
beside a file (`faces.zip.fsidx`), in a folder (`.facestream.fsidx`), or in a cache where that place
is read-only. It is trusted only while the set is in the state that it had, and it is itself whole.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.containers.content import Content
from pipeline.containers.texts import Texts
from pipeline.named_path import MALFORMED
from pipeline.records.record_file import map_bytes
from pipeline.records.recordio import RecordError
from pipeline.records.scan import RECORD, Summary
from pipeline.records.sidecar import SIDECAR_SUFFIX, digest, output_folder, sidecar_folders
from pipeline.whole_file import writing_whole

_FORMAT = "facestream-set-1"
_PREAMBLE = 4096
_WORD = 8  # bytes: tables begin at multiples of it
_LONGEST_REASON = 120  # bytes of JSON

_log = logging.getLogger("facestream.pipeline")


class SetIndex(NamedTuple):
    """An index that was read.

    Attributes:
        file: where it lies.
        state: of the set as it was then.
        fingerprint: of the set's content.
    """

    file: Path
    state: str
    fingerprint: str
    content: Content


def index_files(path: Path) -> list[Path]:
    """Where the index of a set may be, the first choice first."""
    named = _named(path)
    return [folder / named.name for folder in sidecar_folders(named)]


def write_set_index(path: Path, content: Content, *, state: str, fingerprint: str) -> Path:
    """Write the index of the set at `path`, complete or not at all; OSError where none can be."""
    named = _named(path)
    target = output_folder(named) / named.name
    names, paths = content.names, content.paths
    tables = {
        "records": content.records,
        "name_ends": names.ends,
        "names": names.content,
        "path_ends": paths.ends,
        "paths": paths.content,
    }
    body = np.concatenate([_padded(table) for table in tables.values()])
    summary = asdict(content.summary)
    summary["damaged"] = [(*at, _short(why)) for *at, why in content.summary.damaged]
    about: dict[str, Any] = {
        "format": _FORMAT,
        "set": _short(path.name),
        "state": state,
        "fingerprint": fingerprint,
        "summary": summary,
        "tables": {name: table.nbytes for name, table in tables.items()},
    }
    about["digest"] = digest(about, body)
    preamble = json.dumps(about).encode()
    assert len(preamble) < _PREAMBLE, "the list of damaged images is bounded"
    with writing_whole(target) as file:
        file.write(preamble.ljust(_PREAMBLE - 1) + b"\n")
        file.write(body)
    return target


def read_set_indexes(path: Path) -> list[SetIndex]:
    """The indexes of the set at `path` that are whole, wherever they lie; of any state."""
    found = []
    for file in index_files(path):
        if not file.is_file():
            continue
        try:
            found.append(_read(file))
        except (OSError, *MALFORMED) as error:
            _log.warning("%s is damaged (%s): %s is looked through again", file, error, path)
    return found


def index_in_use(path: Path, indexes: Sequence[SetIndex]) -> SetIndex | None:
    """Of several indexes of a set the one whose labels hold; None of none.

    It is where the next one will be written: another was left when the place was, or was not yet,
    read-only, and the set may have been numbered again since.
    """
    if len(indexes) < 2:
        return next(iter(indexes), None)
    named = _named(path)
    target = output_folder(named) / named.name
    return next((index for index in indexes if index.file == target), indexes[0])


def damaged_index(path: Path, why: str) -> RecordError:
    """Of a set, for damage that comes to light in use: samples may not have shown it."""
    beside = [folder / (path.stem + SIDECAR_SUFFIX) for folder in sidecar_folders(path)]
    found = " and ".join(str(one) for one in (*beside, *index_files(path)) if one.is_file())
    return RecordError(f"{found} is damaged: {why}. Remove it, it is made again from {path}")


def _read(file: Path) -> SetIndex:
    """Damage raises errors."""
    with file.open("rb") as opened:
        about = json.loads(opened.read(_PREAMBLE))
    if about["format"] != _FORMAT:
        raise ValueError(f"another program's or version's, {about['format']}")
    body = map_bytes(file, offset=_PREAMBLE)
    if digest(about, body) != about["digest"]:
        raise ValueError("its content is not what was written")
    tables, at = {}, 0
    for name, size in about["tables"].items():
        tables[name] = body[at : at + size]
        at += -(-size // _WORD) * _WORD
    said = about["summary"]
    damaged = tuple(tuple(one) for one in said.pop("damaged"))
    return SetIndex(
        file,
        about["state"],
        about["fingerprint"],
        Content(
            tables["records"].view(RECORD),
            Summary(damaged=damaged, **said),
            Texts(tables["name_ends"].view(np.int64), tables["names"]),
            Texts(tables["path_ends"].view(np.int64), tables["paths"]),
        ),
    )


def _named(path: Path) -> Path:
    if path.is_dir():
        return path / f".facestream{SIDECAR_SUFFIX}"
    return path.with_name(path.name + SIDECAR_SUFFIX)


def _short(why: str) -> str:
    """As much of it as the preamble has room for: names may be long, and JSON escapes marks."""
    reason = ascii(why)[1:-1]
    while len(json.dumps(reason)) > _LONGEST_REASON:
        reason = reason[: _LONGEST_REASON * len(reason) // len(json.dumps(reason))]
    return reason


def _padded(table: np.ndarray) -> np.ndarray:
    """Its bytes, and as many more as fill the last word."""
    content = np.ascontiguousarray(table).view(np.uint8)
    missing = -len(content) % _WORD
    return np.pad(content, (0, missing)) if missing else content
