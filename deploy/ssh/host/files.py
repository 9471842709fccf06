"""The folder on the host: who may use it, and files that are written whole and only when they differ.

    installed.json   what was installed last, written at the very end: without it a run takes all steps again
    start            the command line of the boot stub, as a script
    cluster.key      the key, for its owner alone
    envs/DIGEST      an environment for each bundle; the one that runs, and older ones that something still uses
    stub/            the boot stub's own: journal, managents
    stub.log         its output, where systemd does not keep it
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

LOCK_WAIT_S = 10.0
LOOK_EVERY_S = 0.1
FORMAT = 1
OURS = frozenset(("installed.json", "start", "cluster.key", "envs", "stub", "stub.log", "stub.log.1", ".lock"))
UNFINISHED = ".unfinished"
"""Ending of a file that is being written."""
MAX_RECORD_BYTES = 1 << 20
MAX_TAIL_BYTES = 16 << 10


class Refused(Exception):
    """A step could not be taken: what was expected, what was found. `tail`: the last lines of a program's output."""

    def __init__(self, reason: str, tail: tuple[str, ...] = ()) -> None:
        super().__init__(reason)
        self.tail = tail


@dataclass(frozen=True)
class Installed:
    """What installed.json says. `print`: SHA-256 over all that a running stub was started with. `pid`, `started`,
    `boot`: of the process, where no systemd keeps it (0 else); `unit`: where it does ("" else)."""

    name: str
    print: str
    supervisor: str
    unit: str = ""
    pid: int = 0
    started: int = 0
    boot: str = ""


class Folder:
    """The folder; nothing is made before `make`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record, self.start, self.key = path / "installed.json", path / "start", path / "cluster.key"
        self.envs, self.stub, self.log = path / "envs", path / "stub", path / "stub.log"
        self._lock = -1

    def check(self) -> bool:
        """Whether it is there. Raises Refused when it can't be ours."""
        try:
            names = {entry.name for entry in self.path.iterdir()}
            owner = self.path.stat().st_uid
        except FileNotFoundError:
            return False
        except OSError as error:
            raise Refused(f"{self.path}: expected a folder of our own or none, found: {error.strerror}") from None
        if owner != os.getuid():
            raise Refused(f"{self.path}: expected a folder of user {os.getuid()}, found one of user {owner}")
        if strange := sorted(name for name in names - OURS if not name.endswith(UNFINISHED)):
            raise Refused(
                f"{self.path}: expected a folder with nothing but a boot stub's installation, found also "
                f"{', '.join(strange[:3])}; name another folder"
            )
        return True

    def make(self) -> None:
        """For its owner alone. Raises Refused."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.stub.mkdir(mode=0o700, exist_ok=True)
            self.envs.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise Refused(f"{self.path}: expected a folder that can be made, found: {error.strerror}") from None

    def lock(self) -> None:
        """One installation at a time; until this process ends. Raises Refused."""
        self._lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise Refused(f"{self.path}: expected no other installation under way, found one") from None
                time.sleep(LOOK_EVERY_S)
        for left in self.path.glob(f"*{UNFINISHED}"):  # by one that was killed
            left.unlink()

    def installed(self) -> Installed | None:
        """None when nothing is, or not to the end."""
        try:
            with self.record.open("rb") as file:
                told = json.loads(file.read(MAX_RECORD_BYTES))
            return Installed(**told["installed"]) if told["format"] == FORMAT else None
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def note(self, installed: Installed) -> None:
        write(self.record, json.dumps({"format": FORMAT, "installed": asdict(installed)}).encode(), 0o600)

    def log_tail(self, lines: int) -> tuple[str, ...]:
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - MAX_TAIL_BYTES))
                return tuple(file.read(MAX_TAIL_BYTES).decode("utf-8", "replace").splitlines()[-lines:])
        except OSError:
            return ()


def same(path: Path, content: bytes, mode: int) -> bool:
    """Whether the file is already so."""
    try:
        return path.read_bytes() == content and (path.stat().st_mode & 0o777) == mode
    except OSError:
        return False


def write(path: Path, content: bytes, mode: int) -> None:
    """Whole or not at all; never readable to more than `mode` says, not for a moment. Raises OSError."""
    new = path.with_name(path.name + UNFINISHED)
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    new.replace(path)
