"""NVIDIA's cards as their data sheets have them, and the machines that they are in."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass

from facestream import UserError

# Of a card's memory, what is left beside CUDA and what torch's allocator holds without use.
ROOM = 0.95
HOST_ROOM = 2e12  # bytes of a machine's memory, where nobody says how many


@dataclass(frozen=True)
class Card:
    """Peaks of one card; nothing here is measured.

    Attributes:
        flops: a second, of products in 16 bits summed in float32, of dense matrices.
        bandwidth: bytes a second of its memory.
        memory: bytes.
        link: bytes a second each way to the other cards of its machine: NVLink where its form has
            it, else PCI Express.
        host: bytes a second each way to the machine's memory, by PCI Express.
        capability: compute capability, which decides between float16 and bfloat16.
    """

    name: str
    flops: float
    bandwidth: float
    memory: float
    link: float
    host: float
    capability: tuple[int, int]

    @property
    def room(self) -> int:
        """Bytes that a rank may take of it."""
        return int(ROOM * self.memory)


_PCIE = {3: 16e9, 4: 32e9, 5: 64e9}  # 16 lanes, each way


def _card(
    name: str,
    tflops: float,
    gb_s: float,
    gb: int,
    *,
    pcie: int,
    capability: tuple[int, int],
    nvlink: float = 0.0,
) -> Card:
    """nvlink: GB a second both ways together, as data sheets have it."""
    host = _PCIE[pcie]
    link = nvlink * 1e9 / 2 or host
    return Card(name, tflops * 1e12, gb_s * 1e9, gb * 1e9, link, host, capability)


# Those with NVLink are in their SXM form. GeForce cards multiply twice as fast where sums are
# float16, which training does not use.
CARDS = {
    "t4": _card("T4", 65, 320, 16, pcie=3, capability=(7, 5)),
    "v100": _card("V100 32 GB", 125, 900, 32, pcie=3, capability=(7, 0), nvlink=300),
    "v100-16gb": _card("V100 16 GB", 125, 900, 16, pcie=3, capability=(7, 0), nvlink=300),
    "a10": _card("A10", 125, 600, 24, pcie=4, capability=(8, 6)),
    "a30": _card("A30", 165, 933, 24, pcie=4, capability=(8, 0)),
    "a100-40gb": _card("A100 40 GB", 312, 1555, 40, pcie=4, capability=(8, 0), nvlink=600),
    "a100": _card("A100 80 GB", 312, 2039, 80, pcie=4, capability=(8, 0), nvlink=600),
    "3090": _card("RTX 3090", 71, 936, 24, pcie=4, capability=(8, 6)),
    "4090": _card("RTX 4090", 165.2, 1008, 24, pcie=4, capability=(8, 9)),
    "l4": _card("L4", 121, 300, 24, pcie=4, capability=(8, 9)),
    "l40s": _card("L40S", 362, 864, 48, pcie=4, capability=(8, 9)),
    "h100": _card("H100", 989, 3350, 80, pcie=5, capability=(9, 0), nvlink=900),
    "h200": _card("H200", 989, 4800, 141, pcie=5, capability=(9, 0), nvlink=900),
    "b200": _card("B200", 2250, 7700, 180, pcie=5, capability=(10, 0), nvlink=1800),
}


_ALSO = {"v100-32gb": "v100", "a100-80gb": "a100"}


def find_card(name: str) -> Card:
    """By its key in CARDS, in any case. Raises UserError where there is none."""
    key = name.lower().removeprefix("rtx").strip(" -_")
    key = _ALSO.get(key, key)
    if key in CARDS:
        return CARDS[key]
    near = difflib.get_close_matches(key, CARDS, n=1)
    meant = f" (did you mean {near[0]}?)" if near else ""
    raise UserError(f"unknown GPU {name!r}{meant}: choose one of {', '.join(CARDS)}")


@dataclass(frozen=True)
class Fleet:
    """GPUs of one kind, a rank each.

    Attributes:
        count: of all machines together.
        a_machine: of them in one machine, at most.
        network: bytes a second each way between machines, for one machine.
        host_room: bytes of a machine's memory that its ranks may take.
    """

    card: Card
    count: int
    a_machine: int = 8
    network: float = 12.5e9
    host_room: float = HOST_ROOM

    @property
    def machines(self) -> int:
        return math.ceil(self.count / self.a_machine)

    @property
    def in_machine(self) -> int:
        """Ranks of the first machine."""
        return min(self.count, self.a_machine)

    @property
    def wire(self) -> float:
        """Bytes a second each way of a ring through all ranks: its slowest connection."""
        return min(self.card.link, self.network) if self.machines > 1 else self.card.link
