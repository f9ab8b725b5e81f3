"""How ranks that are not at the same step find the one that all stop after."""

from __future__ import annotations

import json
import math
import threading
import time
from typing import NamedTuple

import torch.distributed as dist

ANSWER = 10.0  # seconds in which every rank that lives has answered; torchrun kills after 30


class Reason(NamedTuple):
    """Why a run stops, and what its command returns."""

    text: str
    exit_code: int  # once the run is saved
    if_undone: int | None = None  # the exit code where no step was done; None: the same

    @property
    def exit_code_undone(self) -> int:
        return self.exit_code if self.if_undone is None else self.if_undone

    def __str__(self) -> str:
        return self.text


class Agreement:
    """Finds the step that all ranks stop after.

    A step named in advance may lie behind a rank already, as hosts run ahead of their GPUs, and a
    collective in every step costs time. So whoever wants a stop says so in a store. A thread of
    each rank sees it, even while its main thread waits in a collective: it lets no further step
    begin and writes down how many have begun. The largest of these numbers is where all stop.

    Args:
        store: the same for all ranks, and used for nothing else.
    """

    def __init__(self, store: dist.Store, *, rank: int, world_size: int) -> None:
        self._store, self._rank = store, rank
        self._keys = [f"steps/{other}" for other in range(world_size)]
        self._left = [f"left/{other}" for other in range(1, world_size)]
        self._lock = threading.Lock()
        self._begun = self._done = 0  # steps
        self._frozen_at = math.inf  # seconds; from then on no step begins until all have answered
        self._last = -1  # of the steps that may begin, once that is known
        self._known = threading.Event()
        self._reason = Reason("", 0)
        self.nothing_done = False  # once the reason is known: a rank had not one step complete

    @property
    def frozen(self) -> bool:
        """Whether a stop was asked for, by any rank."""
        return self._frozen_at < math.inf

    @property
    def known(self) -> Reason | None:
        """The reason to stop, once all ranks have answered."""
        return self._reason if self._known.is_set() else None

    def begin_step(self) -> Reason | None:
        """Count a step as begun and return None; or the reason why none may begin any more."""
        with self._lock:
            if not self.frozen:
                self._begun += 1
                return None
        self._known.wait()
        if self._begun == self._last:
            return self._reason
        self._begun += 1
        return None

    def step_done(self) -> None:
        """Count a step as complete: from then on there is something to save."""
        self._done += 1

    def ask(self, reason: Reason) -> None:
        """Ask all ranks to stop, unless one of them has; the thread's."""
        if not self._store.check(["reason"]):
            self._store.set("reason", json.dumps(reason))

    def follow(self) -> None:
        """Answer if a stop was asked for, and take note of the others' answers; the thread's.

        Raises TimeoutError when ranks have not answered, which are dead or stopped.
        """
        if self._known.is_set() or not self._store.check(["reason"]):
            return
        if not self.frozen:
            with self._lock:
                self._frozen_at = time.monotonic()
            self.answer()
        if self._store.check(self._keys):
            begun, done = zip(*(json.loads(steps) for steps in self._store.multi_get(self._keys)))
            self._last = max(begun)
            self.nothing_done = min(done) == 0
            # All have answered, so none asks any more: the reason is the same everywhere.
            self._reason = Reason(*json.loads(self._store.get("reason")))
            self._known.set()
        elif time.monotonic() - self._frozen_at > ANSWER:
            raise TimeoutError(f"no answer from ranks {self.silent()} in {ANSWER:g} seconds")

    def silent(self) -> list[int]:
        """The ranks that have not answered."""
        return [i for i, key in enumerate(self._keys) if not self._store.check([key])]

    def answer(self) -> None:
        """Tell the others how many steps have begun: no more will, unless another rank's have."""
        self._store.set(self._keys[self._rank], json.dumps([self._begun, self._done]))

    def see_all_leave(self) -> None:
        """Before a process ends that knows the reason: the store ends with rank 0's."""
        if self._rank:
            self._store.set(self._left[self._rank - 1], "")
            return
        deadline = time.monotonic() + ANSWER
        while self._left and not self._store.check(self._left) and time.monotonic() < deadline:
            time.sleep(0.01)
