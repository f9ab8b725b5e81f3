"""Random numbers by counter: every draw is a pure function of what it is for.

A run that is resumed, or spread over other ranks, asks for the same numbers and gets them, because
there is no generator whose state could differ. The mixing is SplitMix64's finalizer (Steele, Lea
and Flood, OOPSLA 2014), applied once for each word of the key.
"""

from __future__ import annotations

import hashlib

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(word: np.ndarray) -> np.ndarray:
    """A bijection of uint64 that flips about half of the bits for any change of its input."""
    word = (word ^ word >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ word >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return word ^ word >> np.uint64(31)


def key(*words: int | str) -> np.ndarray:
    """Fold integers and names into one (1,) uint64 key; the order of the words matters."""
    folded = np.zeros(1, np.uint64)
    for word in words:
        if isinstance(word, str):
            word = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
        folded = mix((folded ^ np.uint64(word % 2**64)) + _GOLDEN)
    return folded


def bits(key: np.ndarray, counter: np.ndarray) -> np.ndarray:
    """(N,) uint64 random words, one for each (N,) integer counter."""
    return mix(mix(counter.astype(np.uint64) * _GOLDEN + key) + key)


def uniform(key: np.ndarray, counter: np.ndarray) -> np.ndarray:
    """(N,) float64 in [0, 1), one for each (N,) integer counter."""
    return (bits(key, counter) >> np.uint64(11)) * 2.0**-53


def word(*words: int | str) -> int:
    """One integer in [0, 2**63), as a seed for what takes one."""
    return int(key(*words)[0] >> np.uint64(1))
