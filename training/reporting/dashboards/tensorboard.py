"""TensorBoard's event files, written at once.

torch's SummaryWriter writes them in a thread, whose first failure ends whoever writes next.
"""

from __future__ import annotations

import io
import os
import re
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import summary

from training.reporting.outlet import AppendedFile
from training.setting_value import as_given


class TensorBoard:
    """What TensorBoard shows of a run; a Dashboard.

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
        """As a Dashboard's."""
        log = SessionLog(status=SessionLog.START)
        self._file.append(_record(Event(wall_time=time.time(), step=step, session_log=log)))

    def settings(self, values: Mapping[str, Any]) -> None:
        """As a Dashboard's; as text that a command line takes."""
        lines = "\n".join(f"    {key}={as_given(value)}" for key, value in values.items())
        self._add(summary.text("config", lines), 0)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """As a Dashboard's."""
        points = [summary.scalar(_tag(name), value).value[0] for name, value in values.items()]
        self._add(Summary(value=points), step)

    def overlay(self, title: str, names: Sequence[str]) -> None:
        """Show several curves in one chart, under CUSTOM SCALARS."""
        layout = {"Facestream": {title: ["Multiline", [f"^{re.escape(_tag(n))}$" for n in names]]}}
        self._add(summary.custom_scalars(layout), 0)

    def image(self, name: str, image: np.ndarray, step: int) -> None:
        """As a Dashboard's."""
        self._add(summary.image(_tag(name), image, dataformats="HWC"), step)

    def histogram(self, name: str, counts: np.ndarray, edges: np.ndarray, step: int) -> None:
        """As a Dashboard's."""
        centers = (edges[:-1] + edges[1:]) / 2
        content = summary.histogram_raw(
            _tag(name),
            min=float(edges[0]),
            max=float(edges[-1]),
            num=int(counts.sum()),
            sum=float(centers @ counts),
            sum_squares=float(np.square(centers) @ counts),
            bucket_limits=edges[1:].tolist(),
            bucket_counts=counts.tolist(),
        )
        self._add(content, step)

    def finish(self, settings: Mapping[str, Any], scores: Mapping[str, float]) -> None:
        """As a Dashboard's: a line among its hyperparameters."""
        plain = {
            key: value if isinstance(value, (bool, int, float, str)) else as_given(value)
            for key, value in settings.items()
        }
        for content in summary.hparams(plain, {_tag(name): scores[name] for name in scores}):
            self._add(content, 0)

    def close(self) -> None:
        """As a Dashboard's; every piece is written already."""

    def _add(self, content: Summary, step: int) -> None:
        self._file.append(_record(Event(wall_time=time.time(), step=step, summary=content)))


def _tag(name: str) -> str:
    """A name of the letters that TensorBoard has in names."""
    return re.sub(r"[^-/\w.]", "_", name)


def _record(event: Event) -> bytes:
    """An event with its length and checksums, as it lies in a file."""
    framed = io.BytesIO()
    RecordWriter(framed).write(event.SerializeToString())
    return framed.getvalue()
