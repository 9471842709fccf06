"""What /proc knows: whether a process is the one that was started, what it listens at, which processes mention a text.

A process is known by its pid, its start time and the boot of the machine: pids come again.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
LOOK_EVERY_S = 0.05
_LISTENS = "0A"


@dataclass(frozen=True)
class Running:
    """A process, so that another one with its pid is not taken for it. `started`: in clock ticks since boot."""

    pid: int
    started: int
    boot: str

    def lives(self) -> bool:
        return self.boot == _boot() and _stat(self.pid) == self.started

    def signal(self, number: int) -> None:
        """Nothing happens when it is gone."""
        if self.lives():
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def end(self, grace_s: float) -> bool:
        """TERM, and KILL after `grace_s`; whether it is gone."""
        self.signal(signal.SIGTERM)
        if wait_for(lambda: not self.lives(), grace_s):
            return True
        self.signal(signal.SIGKILL)
        return wait_for(lambda: not self.lives(), grace_s)


def running(pid: int) -> Running | None:
    """The process that has this pid now; None when there is none, or it is dead and not yet buried."""
    started = _stat(pid) if pid > 0 else None
    return None if started is None else Running(pid, started, _boot())


def wait_for(condition: Callable[[], bool], limit_s: float) -> bool:
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(LOOK_EVERY_S)
    return True


def listens(pid: int) -> bool:
    """Whether the process has a TCP socket that listens."""
    sockets = set()
    try:
        for entry in (PROC / str(pid) / "fd").iterdir():
            target = _link(entry)
            if target.startswith("socket:["):
                sockets.add(target[len("socket:[") : -1])
    except OSError:
        return False
    for table in ("tcp", "tcp6"):
        for line in _text(PROC / str(pid) / "net" / table).splitlines()[1:]:
            words = line.split()
            if len(words) > 9 and words[3] == _LISTENS and words[9] in sockets:
                return True
    return False


def mentioning(text: str, file: str) -> list[int]:
    """Pids of processes in whose /proc file ("cmdline" or "environ") `text` stands, without our own. Processes of other
    users hide their environment: they are not found, unless we are root."""
    wanted = text.encode()
    found = []
    for entry in PROC.iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                if wanted in (entry / file).read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def _stat(pid: int) -> int | None:
    """The start time; None for no process and for a zombie."""
    fields = _text(PROC / str(pid) / "stat").rpartition(")")[2].split()
    if len(fields) < 20 or fields[0] in "ZX":
        return None
    return int(fields[19])


def _boot() -> str:
    return _text(PROC / "sys/kernel/random/boot_id").strip()


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _link(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
