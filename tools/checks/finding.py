"""What a check has found, as one line of the doctor's report."""

from __future__ import annotations

from dataclasses import dataclass

INSTALL = "python tools/doctor.py --install prints the line that installs it"


@dataclass(frozen=True)
class Finding:
    """One line.

    Attributes:
        subject: what was looked at, such as "gpu 0".
        state: "ok"; "note", where training runs and something could be better; or "fails".
        text: what was found.
        remedy: what to do about it, where there is something.
    """

    subject: str
    state: str
    text: str
    remedy: str = ""


def ok(subject: str, text: str) -> Finding:
    return Finding(subject, "ok", text)


def note(subject: str, text: str, remedy: str = "") -> Finding:
    return Finding(subject, "note", text, remedy)


def fails(subject: str, text: str, remedy: str) -> Finding:
    return Finding(subject, "fails", text, remedy)


def remedy_of(error: Exception, otherwise: str) -> str:
    """What to do about an error: install what could not be imported, or something else."""
    return INSTALL if "No module named" in str(error) else otherwise
