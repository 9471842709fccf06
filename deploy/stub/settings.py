"""What one boot stub is told when it starts.

A boot stub needs no host-specific configuration (HPL-2001-321, 2.1): the defaults of `StubConfig` are the host's own
name, a folder, and a port of the system's choice.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from deploy.records import StubRecord
from deploy.stub.limits import StubSettings

EXIT_NAME_TAKEN = 78
"""EX_CONFIG: another name has to be configured; to start again as it is helps only if the other one has ended."""


class NameInUse(Exception):
    """A boot stub of another host has this name, and lives: who, where, what to do."""


Register = Callable[[StubRecord], Awaitable[None]]
"""Writes a boot stub's record into the directory. NameInUse ends the boot stub; whatever else it raises is logged, and
it is called again, with back-off, until it returns."""

__all__ = ["EXIT_NAME_TAKEN", "NameInUse", "Register", "StubConfig", "StubSettings"]


@dataclass(frozen=True, slots=True)
class StubConfig:
    """`name`: unique in the directory. `domain`: the path of the domain that its machine belongs to, "" for none.
    `folder`: of this boot stub alone: journal, managents, socket. `listen`: "host:port", port 0 for any free one.
    `advertise`: the host that others connect to, when it is not that of `listen`. `cluster_key`: 32 bytes, or None.
    `stop_managents`: when it is told to end, its managents' programs are stopped too; else they run on, and are adopted
    at its next start."""

    name: str
    folder: Path
    domain: str = ""
    listen: str = "127.0.0.1:0"
    advertise: str | None = None
    cluster_key: bytes | None = field(default=None, repr=False)
    stop_managents: bool = False
    settings: StubSettings = field(default_factory=StubSettings)
