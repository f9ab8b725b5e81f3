"""What all rooms share: the version, and the error that a user can mend."""

from __future__ import annotations

VERSION = "0.1.0"  # of reports, checkpoints and model cards, too; needs no git

# What a command returns: 0 when it is done or was stopped as planned, 1 with a trace for a mistake
# of ours, this for what its user can mend, 75 where a rank hangs or is gone, 128 + n for signal n.
USER_ERROR_EXIT_CODE = 2


class UserError(ValueError):
    """What a user can mend: the text says what was found, what was expected and how to mend it.

    The commands show its text alone. Any other error is a mistake of ours and shows its trace.
    """
