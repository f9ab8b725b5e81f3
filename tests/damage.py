"""Damage for fuzzers: bytes that were flipped, lost or repeated, and values that nobody expects."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

_INSERTED = (
    *(b"\0", b"\xff\xfe", b"\xe9", b"\n", b"\r", b"\t", b",", b'"', b"{", b"[", b"-", b"."),
    *(b"9" * 30, b"9" * 5000, b"null", b"nan", b"1e999", b"[" * 2000, "\u00b2".encode()),
)
_VALUES = (
    *(None, True, False, -1, 0, 1, 7, 1 << 31, 1 << 63, -(1 << 70), 0.5, 1e308, math.nan),
    *("", "x", "é", "\ud800", "a\0b", "/", [], {}, [[]], [None], {"x": {}}, {"": 1}),
)


def mutate(data: bytes, rng: np.random.Generator) -> tuple[bytes, tuple[int, int]]:
    """Flip, zero, cut or duplicate some bytes; and where what was touched begins and ends."""
    begin = int(rng.integers(0, len(data)))
    end = min(len(data), begin + int(rng.integers(1, 120)))
    kind = rng.integers(0, 5)
    if kind == 0:
        flipped = bytearray(data)
        flipped[begin] ^= 1 << int(rng.integers(0, 8))
        return bytes(flipped), (begin, begin + 1)
    if kind == 1:
        return data[:begin] + bytes(end - begin) + data[end:], (begin, end)
    if kind == 2:
        return data[:begin] + data[end:], (begin, end)
    if kind == 3:
        return data[:end] + data[begin:end] + data[end:], (begin, end)
    return data[:begin], (begin, len(data))


def of_bytes(data: bytes, *, count: int, seed: int = 0) -> Iterator[bytes]:
    """`count` files with damage of every kind, half of it as by a disk, half as by an editor."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        if number % 2:
            yield mutate(data, rng)[0]
            continue
        at = int(rng.integers(0, len(data) + 1))
        inserted = _INSERTED[int(rng.integers(0, len(_INSERTED)))]
        yield data[:at] + inserted + data[at + int(rng.integers(0, 3)) :]


def of_values(content: Any, *, count: int, seed: int = 0) -> Iterator[Any]:
    """`count` copies of nested dicts and lists, each with one value lost or replaced."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        whole = [copy.deepcopy(content)]
        inside: Any = whole
        key: Any = 0
        while isinstance(inside[key], (dict, list)) and inside[key] and rng.random() < 0.8:
            inside = inside[key]
            keys = list(inside) if isinstance(inside, dict) else range(len(inside))
            key = keys[int(rng.integers(0, len(keys)))]
        if rng.random() < 0.2 and inside is not whole:
            del inside[key]
        else:
            inside[key] = _VALUES[int(rng.integers(0, len(_VALUES)))]
        yield whole[0]


def of_json(content: Any, *, count: int, seed: int = 0) -> Iterator[bytes]:
    """Files of JSON: two in three are JSON all the same."""
    for odd in of_values(content, count=count * 2 // 3, seed=seed):
        yield json.dumps(odd).encode()
    yield from of_bytes(json.dumps(content).encode(), count=count - count * 2 // 3, seed=seed)


def assert_refused_by_name(
    path: Path,
    contents: Iterator[bytes],
    read: Callable[[], object],
    allowed: type[Exception] | tuple[type[Exception], ...],
) -> None:
    """Each content of the file is read, or refused by an error of `allowed` that names the file.

    Some must be refused, or the fuzzer shows nothing.
    """
    refused = 0
    for content in contents:
        path.write_bytes(content)
        try:
            read()
        except Exception as error:
            if not isinstance(error, allowed) or path.name not in str(error):
                raise AssertionError(f"{content[:2000]!r} ends in {error!r}") from error
            refused += 1
    assert refused
