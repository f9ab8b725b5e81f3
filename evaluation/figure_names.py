"""What a figure's name says of it: whether it is a share, and which way is better.

A name is made of words, perhaps with a condition: "tar@far=0.001", "fmr at the common threshold".
"""

from __future__ import annotations

import re

# Shares of pairs or searches.
_HIGHER_IS_BETTER = {"accuracy", "tar", "tpir", "auc", "rank", "map", "tmr"}
_LOWER_IS_BETTER = {"eer", "fnmr", "fnir", "frr", "fmr", "far", "fpir"}
_SEPARATION = re.compile(r"^d\W?$|d.?prime", re.IGNORECASE)  # a share of nothing
_NORM = re.compile(r"\bnorm\b", re.IGNORECASE)


def is_percentage(name: str) -> bool:
    """Whether the figure of this name is a share, to be written in percent."""
    if is_norm(name) or "threshold" in subject(name):
        return False
    return bool(_words(name) & (_HIGHER_IS_BETTER | _LOWER_IS_BETTER))


def is_norm(name: str) -> bool:
    """Whether the figure of this name is a length of embeddings."""
    return bool(_NORM.search(name))


def direction(name: str) -> int:
    """1 where more of this figure is better, -1 where less is, 0 where neither is."""
    words = _words(name)
    if not is_percentage(name):
        return 1 if _SEPARATION.search(name) else 0
    if "std" in words:
        return 0
    return 1 if words & _HIGHER_IS_BETTER else -1


def subject(name: str) -> str:
    """What the name says before its condition, in lower case: "tar" of "TAR@FAR=0.001"."""
    return re.split(r"@|\bat\b|\bwithout\b", name.lower())[0].strip()


def _words(name: str) -> set[str]:
    return set(re.findall(r"[a-z]+", subject(name)))
