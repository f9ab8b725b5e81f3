"""Copies a file into a stage folder, a piece at a time, so that a kill costs a few pieces.

A piece counts as copied only when it was written, synced, read back from the disk, and found to be
what came from the source. Of all processes of a node that want one file, one copies: who holds the
lock, which goes with its process.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager
from functools import partial

from pipeline.records.record_file import DataFile, fingerprint
from pipeline.records.recordio import RecordError
from pipeline.staging.local_copy import LocalCopy, piece_line, whole_lines
from pipeline.sync import sync
from pipeline.whole_file import write_whole

ABOUT = "about.json"
_LOCK = "lock"
_AT_ONCE = 8  # pieces between two syncs; twice as many are in memory
_LOOK = 5.0  # seconds between two looks at a copy that another process makes
_STEPS = 10  # lines of progress

_log = logging.getLogger("facestream.pipeline")


class CopyError(Exception):
    """Copying ends here, the run goes on from the source."""


class Copier:
    """Copies one file; `run` does it, on a thread.

    Args:
        file: the source.
        copy: what is there of it, as this process reads it.
        order: the pieces' numbers, each once, in the order in which they are wanted.
    """

    def __init__(self, file: DataFile, copy: LocalCopy, order: Iterable[int]) -> None:
        self._file, self._copy, self._order = file, copy, order
        self._announced = 0

    def run(self, stop: threading.Event) -> None:
        """Copy what is not there; what keeps it from that is logged, not raised."""
        try:
            self._copy.folder.mkdir(parents=True, exist_ok=True)
            with self._locked(stop) as held:
                # All pieces may be there of a copy that was killed before it got its name.
                if held and not (self._copy.is_whole and self._copy.whole.exists()):
                    self._complete(stop)
        except (OSError, RecordError, CopyError) as error:
            self._copy.refresh()
            _log.warning(
                "%s is no longer copied to %s: %s. %s of %s GB are there and are used, the rest is "
                "read from the source; the next start goes on",
                self._file.path,
                self._copy.folder,
                error,
                gigabytes(self._copy.copied),
                gigabytes(self._file.size),
            )

    @contextmanager
    def _locked(self, stop: threading.Event) -> Iterator[bool]:
        """Wait until nobody else copies; gives False where that was not to be, or not needed."""
        with (self._copy.folder / _LOCK).open("wb") as lock:
            while not self._take(lock.fileno()):
                self._copy.refresh()
                if self._copy.is_whole or stop.wait(_LOOK):
                    yield False
                    return
            self._copy.refresh()
            yield True

    @staticmethod
    def _take(lock: int) -> bool:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _complete(self, stop: threading.Event) -> None:
        copy, begun, before = self._copy, time.monotonic(), self._copy.copied
        about = {**copy.original._asdict(), "path": str(copy.original.path)}
        write_whole(copy.folder / ABOUT, json.dumps(about, indent=1) + "\n")
        with _Unfinished.opened(copy) as unfinished:
            wanted = (number for number in self._order if number not in unfinished.there)
            # The source is read while the stage's disk takes and gives back what came before.
            kept = _on_a_thread(lambda: None)
            try:
                while pieces := self._read(wanted, unfinished, stop):
                    kept.result()
                    if stop.is_set():
                        break
                    kept = _on_a_thread(partial(self._keep, pieces, unfinished))
            finally:
                wait([kept])  # it uses what is closed next
            kept.result()
            if stop.is_set():
                return
            unfinished.finish()
        _log.info(
            "%s is copied to %s: %s GB in %.0f s; read from there from now on",
            self._file.path,
            copy.whole,
            gigabytes(self._file.size - before),
            time.monotonic() - begun,
        )

    def _read(
        self, wanted: Iterator[int], unfinished: _Unfinished, stop: threading.Event
    ) -> dict[int, bytes]:
        """Write the next pieces, as many as are synced together; none at the end or a stop."""
        pieces: dict[int, bytes] = {}
        while len(pieces) < _AT_ONCE and not stop.is_set():
            number = next(wanted, None)
            if number is None:
                break
            begin = number * self._copy.piece
            length = min(self._copy.piece, self._file.size - begin)
            pieces[number] = self._file.read_source(begin, length)
            unfinished.write(number, pieces[number])
        return pieces

    def _keep(self, pieces: Mapping[int, bytes], unfinished: _Unfinished) -> None:
        unfinished.commit(pieces)
        self._require_unchanged()
        unfinished.note(pieces)
        self._copy.refresh()
        self._tell()

    def _require_unchanged(self) -> None:
        """Raise CopyError where the source is not as it was: its state names the copy."""
        found, original = self._file.path.stat(), self._copy.original
        if (found.st_size, found.st_mtime_ns) != (original.size, original.changed):
            raise CopyError("it was changed meanwhile")

    def _tell(self) -> None:
        tenth = self._copy.copied * _STEPS // self._file.size
        if tenth > self._announced:
            self._announced = tenth
            _log.info(
                "%s: %s of %s GB are copied to %s",
                self._file.path,
                gigabytes(self._copy.copied),
                gigabytes(self._file.size),
                self._copy.folder,
            )


class _Unfinished:
    """The copy as it is being written, by whoever holds the lock."""

    def __init__(self, copy: LocalCopy, file: int, listing: int) -> None:
        self._copy, self._file, self._list = copy, file, listing
        _, numbers = _listed(copy)
        self.there = set(numbers)

    @classmethod
    @contextmanager
    def opened(cls, copy: LocalCopy) -> Iterator[_Unfinished]:
        """What a killed process has left, or a new one."""
        if not _resume(copy):
            _begin(copy)
        listing = os.open(copy.pieces, os.O_RDWR | os.O_APPEND)
        try:
            file = os.open(copy.folder / _name_in(copy), os.O_RDWR)
            try:
                yield cls(copy, file, listing)
            finally:
                os.close(file)
        finally:
            os.close(listing)

    def write(self, number: int, content: bytes) -> None:
        begin, written = number * self._copy.piece, 0
        while written < len(content):
            written += os.pwrite(self._file, content[written:], begin + written)

    def commit(self, pieces: Mapping[int, bytes]) -> None:
        """Bring pieces to the disk, and see that it gives them back."""
        sync(self._file)
        for number, content in pieces.items():
            begin, length = number * self._copy.piece, len(content)
            if hasattr(os, "posix_fadvise"):  # else they would come from memory
                os.posix_fadvise(self._file, begin, length, os.POSIX_FADV_DONTNEED)
            if os.pread(self._file, length, begin) != content:
                raise CopyError("that disk gives back other bytes than were written")

    def note(self, pieces: Iterable[int]) -> None:
        """From here on readers use them."""
        os.write(self._list, b"".join(map(piece_line, pieces)))
        sync(self._list)
        self.there.update(pieces)

    def finish(self) -> None:
        """Give the copy its name."""
        copy, unfinished = self._copy, self._copy.folder / _name_in(self._copy)
        assert len(self.there) == copy.count, "the order has all of them"
        if fingerprint(unfinished) != copy.original.fingerprint:
            copy.pieces.unlink()
            copy.give_up("is not what the source was")
            raise CopyError("the whole is not what the source was")
        unfinished.replace(copy.whole)
        copy.pieces.unlink()
        folder = os.open(copy.folder, os.O_RDONLY)
        try:
            sync(folder)
        finally:
            os.close(folder)


def _on_a_thread(work: Callable[[], None]) -> Future[None]:
    """An executor's thread would keep the process from ending where the disk no longer answers."""
    done = Future[None]()

    def run() -> None:
        try:
            work()
        except Exception as error:  # the one who waits raises it
            done.set_exception(error)
        else:
            done.set_result(None)

    threading.Thread(target=run, name="stage's disk", daemon=True).start()
    return done


def _name_in(copy: LocalCopy) -> str:
    """The unfinished file's, which its list of pieces says; empty where there is none."""
    name, end, _ = copy.pieces.read_bytes().partition(b"\n")
    return os.fsdecode(name) if end else ""


def _resume(copy: LocalCopy) -> bool:
    """Whether there is something to go on with; the list is cut where a kill has torn it."""
    try:
        name = _name_in(copy)
        if not name or "\0" in name or not (copy.folder / name).is_file():
            return False
    except FileNotFoundError:
        return False
    end, _ = _listed(copy)
    os.truncate(copy.pieces, end)
    return True


def _listed(copy: LocalCopy) -> tuple[int, list[int]]:
    """Where the list's last whole line ends, and the numbers in it."""
    content = copy.pieces.read_bytes()
    header = content.index(b"\n") + 1
    taken, numbers = whole_lines(content[header:], pieces=copy.count)
    return header + taken, numbers


def _begin(copy: LocalCopy) -> None:
    """A copy with nothing in it, in the place of what is no copy."""
    copy.pieces.unlink(missing_ok=True)
    copy.whole.unlink(missing_ok=True)
    for left in copy.folder.glob(f"{copy.whole.name}.*.unfinished"):
        left.unlink()
    unfinished = copy.folder / f"{copy.whole.name}.{secrets.token_hex(4)}.unfinished"
    with unfinished.open("wb") as file:
        file.truncate(copy.original.size)
    write_whole(copy.pieces, os.fsencode(unfinished.name) + b"\n")


def gigabytes(size: int) -> str:
    """10^9 bytes, for messages."""
    return f"{size / 1e9:,.2f}"
