"""The checkpoints of a run as it goes on: begun, waited for, and tried again where one fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from training.faults.watchdog import Watchdog
from training.saving.files import CheckpointError, step_of
from training.saving.saver import Saver


class Saves:
    """A run's saves; call each of its methods on every rank, for the same step.

    Args:
        saver: writes them.
        watchdog: learns that training waits.
        count: gives what the run has counted, to be saved with it.
        say: prints where one will be.
    """

    def __init__(
        self,
        saver: Saver,
        watchdog: Watchdog,
        *,
        count: Callable[[], Mapping[str, int]],
        say: Callable[[str], None],
    ) -> None:
        self._saver, self._watchdog, self._count, self._say = saver, watchdog, count, say
        self._resumed: tuple[Path | None, int] = (None, -1)

    @property
    def last(self) -> Path | None:
        """The newest checkpoint that was completed; until one is, the one that was resumed from."""
        return self._saver.newest

    def resume(self, path: Path, step: int) -> None:
        """The run goes on from a checkpoint of the state after so many steps."""
        self._saver.newest, self._resumed = path, (path, step)

    def begin(self, step: int) -> None:
        """Begin to write a checkpoint of the present state, after so many steps.

        One that fails costs a warning. Then the next is waited for and tried again, and where that
        fails, too, training on would be for nothing: raises CheckpointError.
        """
        self.wait()
        failed = self._saver.fault
        self._begin(step)
        if failed:
            self.require(step)

    def require(self, step: int) -> None:
        """Wait until the present state is saved; one more try where that fails, then
        CheckpointError.
        """
        self.wait()
        for _ in range(2):
            if self._is_saved(step):
                return
            self._begin(step)
            self.wait()
        if not self._is_saved(step):
            raise CheckpointError(
                f"step {step} is not saved, the newest checkpoint is {self.last}: "
                f"{self._saver.fault}"
            )

    def wait(self) -> None:
        """Wait until the save under way, if there is one, is done."""
        with self._watchdog.paused("waiting for a checkpoint"):
            self._saver.wait()

    def _begin(self, step: int) -> None:
        with self._watchdog.paused("saving"):
            path = self._saver.save(step, counters=self._count())
        self._say(f"saving {path}")

    def _is_saved(self, step: int) -> bool:
        if self.last is None:
            return False
        path, resumed_at = self._resumed  # its name may be unlike those of a run's own
        return step == (resumed_at if self.last == path else step_of(self.last))
