"""MXNet's .idx beside a .rec: key<TAB>offset, read, written and compared with the records."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.records.recordio import MAGIC, RecordError

_LINES = 1 << 13  # of an .idx, formatted at once: few enough to stay in the processor's cache


def read_idx(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """MXNet's .idx, lines of ``key<TAB>offset``: (N,) int64 keys and offsets, in the file's order.

    Keys come in any order: im2rec writes those of a shuffled list. Raises RecordError, with the
    line, when it is garbled or a key comes twice.
    """
    path = Path(path)
    content = path.read_bytes()
    return _parse_plain(content) or _parse_lines(path, content.decode(errors="replace"))


def _parse_plain(content: bytes) -> tuple[np.ndarray, np.ndarray] | None:
    """Keys and offsets of an .idx as `write_idx` writes it; None for any other, right or wrong."""
    if content.translate(None, b"0123456789\t\n"):
        return None
    numbers = np.fromstring(content, np.int64, sep=" ")
    if len(numbers) % 2:
        return None
    keys, offsets = numbers.reshape(-1, 2).T.copy()
    # numpy takes any blank for any other and cuts off large numbers: those would not come out
    # again as they went in.
    same = b"".join(_format_lines(keys, offsets)) == content
    return (keys, offsets) if same and _all_differ(keys) else None


def _all_differ(keys: np.ndarray) -> bool:
    # Most rise, which is seen without sorting them.
    return bool((keys[1:] > keys[:-1]).all()) or len(np.unique(keys)) == len(keys)


def _parse_lines(path: Path, text: str) -> tuple[np.ndarray, np.ndarray]:
    """What `read_idx` promises, a line at a time: slow, but it knows the line at fault."""
    keys, offsets, line_of = [], [], {}
    for number, line in enumerate(text.splitlines(), start=1):
        key, _, offset = line.partition("\t")
        try:
            keys.append(int(key))
            offsets.append(int(offset))
            if not 0 <= offsets[-1] < 1 << 63 > keys[-1]:
                raise ValueError("no offset")
        except ValueError:
            raise RecordError(
                f"{path}, line {number}: found {line!r}, expected key<TAB>offset. {_remedy(path)}"
            ) from None
        first = line_of.setdefault(keys[-1], number)
        if first != number:
            raise RecordError(
                f"{path}, line {number}: key {keys[-1]} appears twice, on line {first} too: which "
                f"of two records it names cannot be known. {_remedy(path)}"
            )
    return np.array(keys, np.int64), np.array(offsets, np.int64)


def write_idx(path: str | Path, keys: np.ndarray, offsets: np.ndarray) -> None:
    """Write MXNet's .idx in the order of the keys: (N,) int64 keys and offsets, none negative."""
    order = np.argsort(keys, kind="stable")
    with open(path, "wb") as file:
        file.writelines(_format_lines(keys[order], offsets[order]))


def idx_lists(path: Path, keys: np.ndarray, offsets: np.ndarray) -> bool:
    """Whether a file has the very bytes that `write_idx` would write."""
    order = np.argsort(keys, kind="stable")
    with path.open("rb") as file:
        lines = _format_lines(keys[order], offsets[order])
        return all(file.read(len(piece)) == piece for piece in lines) and not file.read(1)


def _format_lines(keys: np.ndarray, offsets: np.ndarray) -> Iterator[bytes]:
    """``key<TAB>offset`` in decimal, _LINES lines at a time.

    The digits of all lines that have the same place are computed at once, into a table of
    characters from which leading zeros are then left out.
    """
    assert len(keys) == 0 or min(keys.min(), offsets.min()) >= 0, "no place for a minus sign"
    for at in range(0, len(keys), _LINES):
        columns, shown = [], []  # from the last character of the lines to the first
        for numbers, stop in ((offsets[at : at + _LINES], "\n"), (keys[at : at + _LINES], "\t")):
            everywhere = np.ones(len(numbers), bool)
            columns.append(np.full(len(numbers), ord(stop), np.uint8))
            shown.append(everywhere)
            for place in range(len(str(numbers.max()))):
                rest = numbers // 10
                columns.append((numbers - 10 * rest + ord("0")).astype(np.uint8))
                shown.append(numbers > 0 if place else everywhere)
                numbers = rest
        table = np.stack(columns[::-1], axis=1)  # (lines, characters)
        yield table[np.stack(shown[::-1], axis=1)].tobytes()


def check_idx(path: Path, rec: Path, *, images: np.ndarray, content: np.ndarray) -> None:
    """Raise RecordError unless the .idx lists every image of the .rec and nothing but records.

    Args:
        images: (N,) int64 offsets of the records that have one.
        content: the .rec, (bytes,) uint8.
    """
    _, offsets = read_idx(path)
    size = len(content)
    if len(offsets) and offsets.max() >= size:
        raise RecordError(
            f"{path} lists a record at offset {offsets.max()}, but {rec.name} ends at {size}: "
            f"it is cut off, download it again; or the .idx is another file's. {_remedy(path)}"
        )
    # Taking offsets for unique spares numpy seconds; one listed twice is still found once.
    missing = np.setdiff1d(images, offsets, assume_unique=True)
    if len(missing):
        raise RecordError(
            f"{path} disagrees with {rec.name}: of its {len(images)} images it leaves out "
            f"{len(missing)}, the first at offset {missing[0]}. {_remedy(path)}. To do without "
            f"them, list them as `record {missing[0]}` in a file for pipeline/record_filter.py"
        )
    magic = np.frombuffer(MAGIC.to_bytes(4, "little"), np.uint8)
    others = np.setdiff1d(offsets, images, assume_unique=True)
    found = content.take(others[:, None] + np.arange(len(magic)), mode="clip")
    strays = others[(others % 4 != 0) | (found != magic).any(axis=1)]
    if len(strays):
        raise RecordError(
            f"{path} disagrees with {rec.name}: no record starts at offset {strays[0]}. "
            f"{_remedy(path)}"
        )


def _remedy(idx: Path) -> str:
    return f"Run `python tools/rec2idx.py {idx.with_suffix('.rec')}` to write it again"
