"""Where what can be computed again is kept, also for users without a home."""

from __future__ import annotations

import getpass
import os
import tempfile
from pathlib import Path

# Where libraries keep what they have compiled or collected; they look for a home otherwise.
_LIBRARIES = {
    "XDG_CACHE_HOME": "",
    "MPLCONFIGDIR": "matplotlib",
    "TORCHINDUCTOR_CACHE_DIR": "torchinductor",
    "TRITON_HOME": "triton",
    "TRITON_CACHE_DIR": "triton/cache",
}


def cache_folders() -> list[Path]:
    """The folders that may hold this program's cache, the first choice first; none is created.

    $XDG_CACHE_HOME or ~/.cache, and the temporary folder where there is no home or it is not to be
    written.
    """
    folders = [_temporary()]
    if chosen := os.environ.get("XDG_CACHE_HOME"):
        folders.insert(0, Path(chosen))
    elif home := _home():
        folders.insert(0, home / ".cache")
    return [folder / "facestream" for folder in folders]


def provide_caches() -> None:
    """Let libraries find a place for their caches, where this user has no home to write to.

    Call it before they are used. What the environment already says stays.
    """
    home = _home()
    if home is None or not os.access(home, os.W_OK | os.X_OK):
        own = _temporary()
        os.environ.setdefault("HOME", str(own))
        for variable, folder in _LIBRARIES.items():
            os.environ.setdefault(variable, str(own / folder))
        own.mkdir(mode=0o700, exist_ok=True)
    try:
        getpass.getuser()
    except (KeyError, OSError):  # nobody has given this number a name
        os.environ["USER"] = f"user{os.getuid()}"


def _home() -> Path | None:
    try:
        return Path.home()
    except RuntimeError:
        return None


def _temporary() -> Path:
    """A folder of this user alone, below the temporary one, where others may write as well."""
    own = Path(tempfile.gettempdir()) / f"facestream-{os.getuid()}"
    if own.exists() and own.stat().st_uid != os.getuid():  # another has taken the name
        return Path(tempfile.mkdtemp(prefix="facestream-"))
    return own
