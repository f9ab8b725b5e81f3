"""One process at a time in a run's folder: who holds it, and whether that one still lives.

RUN/lock.json names a process. On its own host, whether that process lives is for the system to say.
From another host its heartbeat decides, which is the file's modification time: it is not compared
with a clock, as hosts' clocks differ, but watched for a change. The file stays when a run has ended
and says so: a suspended run that wakes up later must find that another was there.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import socket
import sys
import threading
import time
import uuid
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from facestream import USER_ERROR_EXIT_CODE
from pipeline.named_path import MALFORMED
from pipeline.whole_file import write_whole
from training.saving.files import CheckpointError

FILE = "lock.json"

_BEAT = 30.0  # seconds between two heartbeats
_MISSED = 3  # heartbeats that did not come: the holder is dead or suspended
_LOOK = 1.0  # seconds between two looks at another host's heartbeat
_SETTLE = 0.2  # seconds after which of two that took a folder at once one sees the other

Holder = dict[str, Any]  # what lock.json says


class Lock:
    """A run's folder, held by this process from `acquire` to `release`.

    Whoever finds that another process has taken the folder over, as from a suspended run that was
    taken for dead, ends this process at once: nothing more may be written there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._path = folder, folder / FILE
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._keep_beating, name="lock", daemon=True)

    def acquire(self) -> None:
        """Hold the folder, which must exist; watches it first where another host's process may.

        Raises CheckpointError, with who holds it, where a process that lives does.
        """
        while not self._create():
            holder = _read(self._path)
            if holder is None:
                continue  # removed at this moment
            if not holder:  # being written at this moment, or by one that was killed meanwhile
                time.sleep(_LOOK)
                holder = _read(self._path) or {"released": True}
            if not _is_free(holder):
                if _lives(holder, self._path):
                    if _is_free(holder := _read(self._path) or {}):
                        continue  # it has ended meanwhile
                    raise _in_use(self._folder, holder)
                logging.warning(
                    "%s was held by %s, which lives no more: taken over",
                    self._folder,
                    _describe(holder),
                )
            self._write()
            time.sleep(0 if _is_this_process(holder) else _SETTLE)
            holder = _read(self._path) or {}
            if not _is_this_process(holder):
                raise _in_use(self._folder, holder)
            break
        for left in self._folder.glob("lock.*.unfinished"):  # by a process that was killed here
            left.unlink(missing_ok=True)
        atexit.register(self.release)
        self._thread.start()

    def require(self) -> None:
        """End this process if the folder is another's now; call it before writing there."""
        try:
            holder = _read(self._path)
        except OSError as error:  # a disk that does not answer is not another process
            logging.debug("%s cannot be read: %s", self._path, error)
            return
        if holder and not _is_this_process(holder):
            _end(
                f"{self._folder} was taken over by {_describe(holder)}, as this process gave no "
                "sign of life: it ends here and writes nothing more. Go on with that one"
            )

    def beat(self) -> None:
        """Give a sign of life, if the folder is still this process's own."""
        self.require()
        try:
            if self._path.exists():
                os.utime(self._path)
            else:  # somebody has removed it
                self._create()
        except OSError as error:
            logging.debug("no heartbeat in %s: %s", self._path, error)

    def release(self) -> None:
        """Let the folder go, if it is still this process's own."""
        self._leaving.set()
        atexit.unregister(self.release)
        try:
            if _is_this_process(_read(self._path) or {}):
                self._write(released=True)
        except OSError as error:
            logging.debug("%s stays as it is: %s", self._path, error)

    def _keep_beating(self) -> None:
        while not self._leaving.wait(_BEAT):
            self.beat()

    def _create(self) -> bool:
        """Write the file if there is none; whether that was done."""
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return False
        with os.fdopen(descriptor, "w") as file:
            json.dump(_this_process(os.getpid()), file)
        # Read back, as some shares let two processes create one file.
        return _is_this_process(_read(self._path) or {})

    def _write(self, *, released: bool = False) -> None:
        holder = _this_process(os.getpid()) | {"released": released}
        aside = self._path.with_suffix(f".{os.getpid()}.unfinished")
        write_whole(self._path, json.dumps(holder), aside=aside)


def require_free(folder: Path) -> None:
    """Raise CheckpointError where a process of this host holds a folder.

    For before anything is allocated, which that process may need; `Lock.acquire` is sure.
    """
    try:
        holder = _read(folder / FILE)
    except OSError:  # what is wrong with the folder is said where it is claimed
        return
    if holder and not _is_free(holder) and _lives_here(holder):
        raise _in_use(folder, holder)


def _is_free(holder: Holder) -> bool:
    """Whether nobody need be asked: released, or an earlier run of this process."""
    return bool(holder.get("released")) or _is_this_process(holder)


def _lives(holder: Holder, path: Path) -> bool:
    here = _lives_here(holder)
    if here is not None:
        return here
    seconds = _MISSED * _BEAT
    until = time.strftime("%H:%M:%S", time.gmtime(time.time() + seconds))
    logging.warning(
        "%s may be in use by %s: watching it until %s UTC for a sign of life",
        path.parent,
        _describe(holder),
        until,
    )
    seen = _stamp(path)
    for _ in range(round(seconds / _LOOK)):
        time.sleep(_LOOK)
        if _stamp(path) != seen:
            return True
    return False


def _lives_here(holder: Holder) -> bool | None:
    """Whether a process of this host lives, suspended or not; None of another host's."""
    if holder.get("host_id") != _host_id():
        return None
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return _started(holder["pid"]) in (holder["started"], None)  # or its number is used again


def _started(pid: int) -> str | None:
    """When a process started, in ticks since the host did; "" for a dead one, None if unknown."""
    try:
        # After the name, which may hold blanks and brackets: state, …, start time.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return "" if fields[0] in "ZX" else fields[19]


@cache
def _this_process(pid: int) -> Holder:
    """What identifies it. pid: its own, so that a fork is another."""
    return {
        "token": uuid.uuid4().hex,
        "pid": pid,
        "started": _started(pid),
        "host": socket.gethostname(),
        "host_id": _host_id(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
    }


def _host_id() -> str:
    """Of a host since it was booted, and of the numbers of processes in this container."""
    boot, numbers = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    try:
        return f"{socket.gethostname()} {boot.read_text().strip()} {os.readlink(numbers)}"
    except OSError:
        return f"{socket.gethostname()} {uuid.getnode():x}"


def _is_this_process(holder: Holder) -> bool:
    return holder.get("token") == _this_process(os.getpid())["token"]


def _read(path: Path) -> Holder | None:
    """What the file says; nothing where it is damaged or half written, None where there is none."""
    try:
        holder = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except MALFORMED:
        return {}
    return holder if _names_a_process(holder) else {}


def _names_a_process(holder: Any) -> bool:
    """Whether it says all that `_this_process` does."""
    if not isinstance(holder, dict):
        return False
    texts = [holder.get(key) for key in ("token", "host", "host_id", "since")]
    pid, started = holder.get("pid"), holder.get("started", 0)
    return (
        all(isinstance(text, str) for text in texts)
        and (isinstance(pid, int) and 0 < pid < 1 << 31)
        and (started is None or isinstance(started, str))
    )


def _stamp(path: Path) -> tuple[int, bytes]:
    """What changes with every heartbeat; opened, as a share asks its server only then."""
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_mtime_ns, file.read()
    except FileNotFoundError:
        return 0, b""


def _in_use(folder: Path, holder: Holder) -> CheckpointError:
    return CheckpointError(
        f"{folder} is in use by {_describe(holder)}: stop that run, or choose another run.output"
    )


def _describe(holder: Holder) -> str:
    if "pid" not in holder:
        return "a process that is not known"
    return f"process {holder['pid']} on {holder['host']} since {holder['since']} UTC"


def _end(why: str) -> NoReturn:
    """End the process, whatever its main thread does."""
    print(why, file=sys.stderr, flush=True)
    os._exit(USER_ERROR_EXIT_CODE)
