"""The logs of a local fabric: the keeper's own lines, the end of a log for an error, and their bound."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path

MAX_LOG_BYTES = 16 * 1024 * 1024
SHOWN_LINES = 5
SHOWN_CHARS = 500
READ_BYTES = 16 * 1024


def say(text: str) -> None:
    """A line in the keeper's own log."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def tail(log: Path) -> str:
    """The last lines, indented, for an error."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - READ_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()[-SHOWN_LINES:]
    except OSError:
        lines = []
    return "\n".join(f"    {line[:SHOWN_CHARS]}" for line in lines) or "    (it wrote nothing)"


def bound(folder: Path) -> None:
    """Empty what is longer than MAX_LOG_BYTES: all write with O_APPEND, so what follows begins at the start."""
    for log in folder.glob("*.log"):
        with contextlib.suppress(OSError):
            if log.stat().st_size > MAX_LOG_BYTES:
                os.truncate(log, 0)
