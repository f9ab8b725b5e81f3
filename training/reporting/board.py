"""TensorBoard's event files, written at once.

torch's SummaryWriter writes them in a thread, whose first failure ends whoever writes next.
"""

from __future__ import annotations

import io
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import summary

from training.reporting.outlet import AppendedFile


class Board:
    """What TensorBoard shows of a run.

    Args:
        folder: for the event files.
        first_step: what earlier files say of this step and later ones is forgotten.
    """

    def __init__(self, folder: Path, *, first_step: int) -> None:
        name = f"events.out.tfevents.{time.time():.3f}.{socket.gethostname()}.{os.getpid()}"
        version = _record(Event(wall_time=time.time(), file_version="brain.Event:2"))
        self._file = AppendedFile(folder / name, head=version)
        self.forget_from(first_step)

    def forget_from(self, step: int) -> None:
        """Take back what was said of this step and later ones."""
        log = SessionLog(status=SessionLog.START)
        self._file.append(_record(Event(wall_time=time.time(), step=step, session_log=log)))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Points of curves, by name."""
        points = [summary.scalar(name, value).value[0] for name, value in values.items()]
        self._add(Summary(value=points), step)

    def image(self, name: str, image: torch.Tensor, step: int) -> None:
        """An image of shape (3, H, W), uint8."""
        self._add(summary.image(name, image, dataformats="CHW"), step)

    def text(self, name: str, text: str) -> None:
        """A text in Markdown."""
        self._add(summary.text(name, text), 0)

    def _add(self, content: Summary, step: int) -> None:
        self._file.append(_record(Event(wall_time=time.time(), step=step, summary=content)))


def _record(event: Event) -> bytes:
    """An event with its length and checksums, as it lies in a file."""
    framed = io.BytesIO()
    RecordWriter(framed).write(event.SerializeToString())
    return framed.getvalue()
