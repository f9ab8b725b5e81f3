"""RUN/run.log: every line that the console showed, or could not show, with its time."""

from __future__ import annotations

import logging
import sys
from logging.handlers import MemoryHandler
from pathlib import Path

from pipeline.named_path import as_text
from training.reporting.lines import timed
from training.reporting.outlet import AppendedFile


class RunLog(logging.Handler):
    """Appends lines over all of a run's resumes; warnings too, between `attach` and `detach`.

    Args:
        path: of the file, in a folder that exists.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(logging.WARNING)
        self.path = path
        # Not by a warning, which would come back here.
        self._file = AppendedFile(path, tell=lambda text: print(text, file=sys.stderr))

    def write(self, text: str, *, at: float | None = None) -> None:
        """Add lines as they were shown. at: when, in seconds since the epoch; None: now."""
        self._file.append(as_text(f"{timed(text, at=at)}\n").encode(errors="backslashreplace"))

    def emit(self, record: logging.LogRecord) -> None:
        """Add a warning or an error, as logging wants it."""
        self.write(f"{record.levelname}  {self.format(record)}", at=record.created)

    def attach(self) -> None:
        """Take warnings from now on, and what `keep_early_warnings` has kept."""
        root = logging.getLogger()
        root.addHandler(self)
        for early in [h for h in root.handlers if isinstance(h, MemoryHandler)]:
            root.removeHandler(early)
            early.setTarget(self)
            early.flush()

    def detach(self) -> None:
        """Take no more warnings; `write` goes on."""
        logging.getLogger().removeHandler(self)


def keep_early_warnings() -> None:
    """Keep warnings for the run.log of a run that does not have its folder yet."""
    never = logging.CRITICAL + 1  # is a warning so grave that it cannot wait
    logging.getLogger().addHandler(MemoryHandler(1000, flushLevel=never, flushOnClose=False))
