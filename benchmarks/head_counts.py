"""What a step of the head does on a GPU, counted without one, not measured:

    python benchmarks/head_counts.py [--compiled]

A step of one rank of eight is acted out on tensors without memory: its operations, launches of
kernels and collectives are listed and do not run. An operation of PyTorch counts as one kernel that
reads its inputs and writes its outputs once; some, such as sort and cumsum, are more than that. Of
a Triton kernel the arguments say what it reads and writes.

Both tables stand in docs/head_step.md. --compiled needs no GPU either, but triton.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.compiled_kernels import Compiled, Launch, compile_launch, needs, recorded_launches
from benchmarks.head_traffic import moved
from heads import ArcFace, PartialFC
from heads.passes.kernels import class_kernels, kernel_launch
from heads.rows import initial
from models.traffic import Traffic
from training.distributed import leave_world

RANKS, DIM = 8, 512
# Identities and sample rate: 12,500 and 362,500 classes in a rank's step.
CLASSES = ((100_000, 1.0), (29_000_000, 0.1))
BATCHES = (128, 1024, 4096)
# Compute capability, and multiprocessors of a card that has it: T4, A100, H100, RTX 5090.
CARDS = {75: 40, 80: 108, 90: 132, 120: 170}
_COUNTED = 90
_CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)


class Counts(NamedTuple):
    """One step of one rank. Bytes: `asked` and below are the Triton kernels'.

    Attributes:
        operations: of PyTorch, views and new memory apart.
        launches: of Triton kernels.
        sent: what the rank gives to its collectives.
        moved: bytes that operations and kernels read and write, each once.
        asked: bytes that all programs of the Triton kernels ask for; the caches serve most.
    """

    operations: int
    launches: int
    collectives: int
    sent: int
    moved: int
    asked: int


@dataclass(frozen=True)
class ActedOut:
    """What a step would do."""

    traffic: Traffic
    launches: list[Launch]
    sent: list[int]  # bytes, by collective

    @property
    def counts(self) -> Counts:
        kernels_moved = [moved(launch) for launch in self.launches]
        return Counts(
            operations=self.traffic.calls.total(),
            launches=len(self.launches),
            collectives=len(self.sent),
            sent=sum(self.sent),
            moved=self.traffic.bytes.total() + sum(m.read + m.written for m in kernels_moved),
            asked=sum(m.asked for m in kernels_moved),
        )


class _Elsewhere(TorchDispatchMode):
    """Collectives are listed, and what has no rule for tensors without memory does not run."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._fused_sgd_.tensor_lr:
            return None
        if func.namespace == "c10d":
            # An all_reduce works in place, others are given where the result goes first.
            given = args[0] if func._opname == "allreduce_" else args[1]
            (given,) = given if isinstance(given, list) else (given,)
            self.sent.append(given.nbytes)
        return func(*args, **(kwargs or {}))


class _AtTheGroup(TorchDispatchMode):
    """Collectives go to the fake group as a CPU's: torch 2.6 has no rule for such tensors."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            return func.redispatch(_CPU, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def act_out(
    classes: int, rate: float, batch: int, *, backend: str = "triton", capability: int = _COUNTED
) -> ActedOut:
    """A training step with ArcFace and products in 16 bits, by the first of eight ranks.

    Args:
        batch: of all ranks together.
        capability: of the card whose block sizes the Triton kernels take.
    """
    with ExitStack() as stack:
        stack.enter_context(_many_ranks())
        stack.enter_context(patch.object(initial, "initial_pieces", lambda *_, **__: ()))
        # There is none for tensors without memory, and the head only switches it off.
        stack.enter_context(patch.object(torch, "autocast", lambda *_, **__: nullcontext()))
        stack.enter_context(patch.object(kernel_launch, "available", lambda *_: None))
        hardware = divmod(capability, 10), CARDS[capability]
        stack.enter_context(patch.object(class_kernels, "hardware", lambda _: hardware))
        head = PartialFC(
            *(classes, DIM, ArcFace()),
            sample_rate=rate,
            # What a card's products are in.
            compute_dtype=torch.bfloat16 if capability >= 80 else torch.float16,
            backend=backend,
            device="meta",
        )
        embeddings = torch.empty(batch // RANKS, DIM, device="meta", requires_grad=True)
        labels = torch.empty(batch // RANKS, dtype=torch.int64, device="meta")
        launches = stack.enter_context(recorded_launches())
        with _AtTheGroup(), Traffic() as traffic, _Elsewhere() as elsewhere:
            head(embeddings, labels).backward()
            head.step(torch.empty((), device="meta"))
    return ActedOut(traffic, launches, elsewhere.sent)


@contextmanager
def _many_ranks() -> Iterator[None]:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=RANKS)
    try:
        yield
    finally:
        leave_world()


def counted_rows(
    backends: Sequence[str] = ("triton", "torch"),
    sizes: Sequence[tuple[int, float]] = CLASSES,
) -> Iterator[tuple[str, ...]]:
    """Those of the table in docs/head_step.md."""
    for backend, (classes, rate), batch in itertools.product(backends, sizes, BATCHES):
        counts = act_out(classes, rate, batch, backend=backend).counts
        yield (
            backend,
            f"{round(classes * rate / RANKS):,}",
            f"{batch:,}",
            f"{counts.operations:,}",
            f"{counts.launches:,}",
            f"{counts.collectives}",
            f"{counts.sent / 1e6:.2f}",
            f"{counts.moved / 1e9:.2f}",
            f"{counts.asked / 1e9:.2f}",
        )


def compiled_rows() -> Iterator[tuple[str, ...]]:
    """A kernel and, for each card, the most registers and KiB that one of its variants takes."""
    needed: dict[str, dict[int, list[Compiled]]] = {}
    for card in CARDS:
        launches = act_out(*CLASSES[-1], BATCHES[0], capability=card).launches
        found = {}
        for launch in launches:
            compiled = compile_launch(launch, card)
            found.setdefault(compiled.hash, (launch, compiled))
        for launch, compiled in found.values():
            variants = needed.setdefault(launch.kernel.__name__, {}).setdefault(card, [])
            variants.append(needs(str(card), launch, compiled))
    for name, cards in needed.items():
        yield (name, *map(_most, cards.values()))


def _most(variants: list[Compiled]) -> str:
    if any(variant.stack for variant in variants):
        return "spills"
    shared = max(variant.shared for variant in variants) / 1024
    return f"{max(variant.registers for variant in variants)}, {shared:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0].rstrip(":"))
    parser.add_argument(
        "--compiled",
        action="store_true",
        help="instead, registers of a thread and KiB of shared memory that the Triton kernels take",
    )
    if parser.parse_args().compiled:
        columns, rows = ("kernel", *(f"sm_{card}" for card in CARDS)), compiled_rows()
    else:
        columns = (
            *("backend", "S", "G", "operations", "launches", "collectives"),
            *("MB sent", "GB moved", "GB asked for"),
        )
        rows = counted_rows()
    for row in (columns, ["---"] * len(columns), *rows):
        print("|", " | ".join(row), "|", flush=True)


if __name__ == "__main__":
    main()
