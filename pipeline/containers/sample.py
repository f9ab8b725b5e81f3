"""An image of a source whose images come in no particular order."""

from __future__ import annotations

from typing import NamedTuple


class Sample(NamedTuple):
    """One image, as a source in no particular order has it."""

    identity: int | str
    image: bytes  # encoded
    place: str  # file and row or member, for messages
