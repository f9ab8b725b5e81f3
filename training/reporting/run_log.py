"""RUN/run.log: every line that the console showed, or could not show, with its time."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path

from training.reporting.outlet import AppendedFile


class RunLog(logging.Handler):
    """Appends lines over all of a run's resumes; as a handler, warnings too.

    Args:
        path: of the file, in a folder that exists.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(logging.WARNING)
        self.path = path
        # Not by a warning, which would come back here.
        self._file = AppendedFile(path, tell=lambda text: print(text, file=sys.stderr))

    def write(self, text: str) -> None:
        """Add lines as they were shown."""
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        lines = "".join(f"{now}  {line}\n" for line in text.splitlines())
        self._file.append(lines.encode(errors="backslashreplace"))

    def emit(self, record: logging.LogRecord) -> None:
        """Add a warning or an error, as logging wants it."""
        self.write(f"{record.levelname}  {self.format(record)}")
