"""How a command ends. The codes are frozen: scripts rely on them.

A command that cannot do what was asked raises `Failure`; `main` prints its one line on standard error and exits with
its code. Nothing else prints an error, and nobody sees a traceback unless it is a fault of ours.
"""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    DONE = 0
    ERROR = 1
    NOT_PLACED = 2
    """Not placed at all, or placed short of the count. Of a drain: something was stopped without another place."""
    NOT_ALL = 2
    """Of managents: not all that were targeted are active, or did what they were told."""
    FOUND = 3
    """An audit found what does not fit together; a load test, a promise that does not hold; a comparison, what is
    worse."""
    REPAIRED = 4
    """An audit found it, and all of it is repaired."""
    USAGE = 64
    INTERRUPTED = 130
    """Ctrl-C, as shells count it: 128 and the signal's number."""


class Failure(Exception):
    """The command failed; `str(failure)` is what to tell, on one line, with what was expected and what was found.
    `details` are further lines, each indented, such as the reasons why a deployment does not fit."""

    def __init__(self, text: str, code: Exit = Exit.ERROR, details: tuple[str, ...] = ()) -> None:
        super().__init__(text)
        self.code = code
        self.details = details
