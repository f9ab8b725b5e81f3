"""Lines on a console: whole, however long, and with their time where nobody watches."""

from __future__ import annotations

import logging
import time

from rich.console import Console
from rich.text import Text


def timed(text: str, *, at: float | None = None) -> str:
    """The lines of a text with their time in front. at: seconds since the epoch; None: now."""
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
    return "\n".join(f"{when}  {line}" for line in text.splitlines())


def open_console() -> Console:
    """stdout, without a width: a path that is folded is no path any more."""
    return Console(highlight=False, soft_wrap=True)


def show(console: Console, text: str, *, at: float | None = None, style: str = "") -> None:
    """Print lines as they are; a terminal shows when by itself, a file or a pipe does not."""
    console.print(Text(text if console.is_terminal else timed(text, at=at), style=style))


class ConsoleHandler(logging.Handler):
    """Shows warnings and errors, a line each, as run.log has them."""

    def emit(self, record: logging.LogRecord) -> None:
        """As logging wants it."""
        style = "yellow" if record.levelno < logging.ERROR else "red"
        text = f"{record.levelname}  {self.format(record)}"
        show(open_console(), text, at=record.created, style=style)
