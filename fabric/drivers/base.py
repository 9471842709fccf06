"""How an instance is run: the small interface that every driver keeps.

Theory of operation. A *driver* starts, stops, notices exits, adopts and logs. It decides nothing: whether an exited
instance starts again, and after how long, is the agent role's business. One driver serves one agent and owns the
agent's state directory below `instances/`; all its methods run on the agent's asyncio loop.

An instance is known by its name, and each start of it by its *attempt*, a number that grows with every restart. An
attempt is run at most once, which makes every command repeatable:

- `start` means "see to it that this attempt was started". Repeated, it starts nothing: if the attempt (or a newer one)
  still runs, it answers with what runs; if it has ended already, it answers with what ran and reports the exit again.
- An exit is remembered until the instance is removed or started anew, and `open` reports it every time. So an agent
  that dies between an exit and its journal hears of it again. Reports are "at least once": look at `attempt`.
- `stop` and `remove` of an unknown instance are fine.

Reports come two ways: from `open`, for everything up to that moment, and through the callback `on_exit(Exited)`, on the
loop, for everything after. A stopped instance is reported as well, before `stop` returns.

Errors are split by blame. `StartFailed.blame` is "image" when the same start would fail on every node (no such entry
point, not executable) and "node" when another node might do better (out of memory, disk, processes).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

MAX_NAME_CHARS = 100

_NAME = re.compile(r"[a-z0-9][a-z0-9-]*(\.[a-z0-9-]+)*")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one instance may use. `memory_mib`: address space of each of its processes. `disk_mib`: size of each file it
    writes. `open_files`: file descriptors of each process. `processes`: processes of the *user* the agent runs as (the
    kernel counts no other way, and not at all for root); None sets no limit."""

    memory_mib: int
    disk_mib: int
    open_files: int = 1024
    processes: int | None = None


@dataclass(frozen=True, slots=True)
class Launch:
    """One start of one instance. `instance`: "<deployment>.<ordinal>", of [a-z0-9.-]. `entrypoint` and `root`:
    absolute, the entry point inside the unpacked, shared, read-only image. `environment`: the instance's identity and
    the user's variables. A driver adds FABRIC_INSTANCE_DIR (the instance's own directory, its cwd; it stays over
    attempts) and FABRIC_IMAGE_ROOT, and, where `environment` does not set them, PATH, HOME and TMPDIR; nothing else is
    passed on from the agent."""

    instance: str
    attempt: int
    entrypoint: Path
    root: Path
    environment: Mapping[str, str]
    limits: Limits


@dataclass(frozen=True, slots=True)
class Running:
    """An instance that runs. `pid`: 0 when nothing real runs (driver `null`). `started_at`: seconds since the epoch, by
    the node's clock. `directory`: the instance's own directory, empty when there is none."""

    instance: str
    attempt: int
    pid: int
    started_at: float
    directory: str


@dataclass(frozen=True, slots=True)
class Exited:
    """An instance that ended. Exactly one of: `code` (its exit status), `signal` (the number that killed it), or
    `lost`: it vanished without a status, for example with the machine. `log_tail`: the last lines it wrote, at most 10
    and at most 2 KiB."""

    instance: str
    attempt: int
    code: int | None
    signal: int | None
    lost: bool
    log_tail: str


class DriverError(Exception):
    """The driver can't do its work here: what was expected, what was found, what to do."""


class StartFailed(DriverError):
    """This start did not happen, and left nothing behind."""

    def __init__(self, reason: str, blame: Literal["image", "node"]) -> None:
        super().__init__(reason)
        self.reason = reason
        self.blame: Literal["image", "node"] = blame


OnExit = Callable[[Exited], None]


class Driver(Protocol):
    """See the module's docstring for what repeated calls mean."""

    @property
    def name(self) -> str:
        """As in the configuration: "process", "null"."""

    @property
    def real(self) -> bool:
        """False when nothing is really started; say so wherever an instance of this driver shows."""

    async def open(self) -> list[Running | Exited]:
        """Adopt what runs since before, and report what ended and was not removed. Once, before anything else.
        Raises DriverError, for example when another agent uses the same state directory."""

    async def start(self, launch: Launch) -> Running:
        """Returns when the entry point executes. Raises StartFailed, and ValueError for a malformed `launch`."""

    async def stop(self, instance: str, grace_s: float) -> None:
        """TERM to the instance's processes, KILL after `grace_s`. Returns when they are gone; raises DriverError when
        they are still there a bounded time after the KILL."""

    async def remove(self, instance: str) -> None:
        """Forget a stopped instance: its directory, log and exit. Raises DriverError while it runs."""

    def log(self, instance: str, max_bytes: int) -> bytes:
        """The newest output, at most `max_bytes`, over all attempts; empty when there is none."""

    async def close(self) -> None:
        """Leave. Instances run on, for the next `open`."""


def checked_name(instance: str) -> str:
    """`instance`, if it is a name that is safe as a file name. Raises ValueError."""
    if len(instance) > MAX_NAME_CHARS or not _NAME.fullmatch(instance):
        wanted = f"at most {MAX_NAME_CHARS} characters of [a-z0-9-] with dots between"
        raise ValueError(f"expected an instance name of {wanted}, found {instance!r}")
    return instance


def checked_launch(launch: Launch) -> Launch:
    """`launch`, if a driver may act on it. Raises ValueError, naming the field."""
    checked_name(launch.instance)
    if launch.attempt < 0:
        raise ValueError(f"expected attempt >= 0, found {launch.attempt} for {launch.instance}")
    for field in ("entrypoint", "root"):
        path: Path = getattr(launch, field)
        if not path.is_absolute():
            raise ValueError(f"expected an absolute path as {field}, found {str(path)!r} for {launch.instance}")
    for field in ("memory_mib", "disk_mib", "open_files", "processes"):
        value: int | None = getattr(launch.limits, field)
        if value is not None and value < 1:
            raise ValueError(f"expected limits.{field} >= 1, found {value} for {launch.instance}")
    for key, value_ in launch.environment.items():
        if not key or "=" in key or "\0" in key or "\0" in value_:
            raise ValueError(f"expected environment variables without '=' in the name and without NUL, found {key!r}")
    return launch
