"""The port to a coordination tree: operations, outcomes, sessions and watches as plain values.

Theory of operation. A *tree* is what ZooKeeper offers to one session. The caller submits an operation (a frozen
dataclass: `Create`, `Get`, …) and gets exactly one outcome back, later: the operation's result or a `TreeError`.
Nothing is retried underneath: an outcome of `ConnectionLost` means "it may or may not have happened", and the caller,
who knows what it wanted, looks again. Besides outcomes a tree emits *events*: `SessionChanged` and `WatchFired`.

Watches are one-shot, as ZooKeeper's are: `watch=True` on a read arms one; it fires at most once; read again to arm it
again. `WatchFired.path` says where to look, never what happened: after a reconnect a watch may fire though nothing
changed, and two changes may fire it once. So every role's answer to a watch is to read again.

The session: CONNECTED; SUSPENDED (connection lost, the ephemerals may still live: award nothing); LOST (the session is
over, its ephemerals are gone: drop every role, then register anew). After LOST a tree opens a new session by itself
and says CONNECTED again, with another `session_id`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

MAX_DATA_BYTES = 256 * 1024
"""No znode of ours is larger: ZooKeeper's own wall is 1 MiB for a whole packet, and a few KB is polite."""


class SessionState(enum.Enum):
    CONNECTED = "connected"
    SUSPENDED = "suspended"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Stat:
    """What ZooKeeper knows of a znode. `czxid`/`mzxid`: transaction of creation / last change; all operations of one
    `Multi` share one zxid. `owner`: session id of an ephemeral, 0 otherwise. Times are milliseconds since the epoch,
    by the server's clock."""

    czxid: int
    mzxid: int
    version: int
    children: int
    owner: int
    ctime_ms: int
    mtime_ms: int


# --- operations -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Create:
    """Create a znode. `sequence` appends ZooKeeper's 10-digit counter to the path. Outcome: `Created`.
    Errors: NodeExists, NoNode (no parent)."""

    path: str
    data: bytes = b""
    ephemeral: bool = False
    sequence: bool = False


@dataclass(frozen=True, slots=True)
class Get:
    """Read data and stat. Outcome: `Got`. Errors: NoNode (no watch is armed then; use `Exists` for that)."""

    path: str
    watch: bool = False


@dataclass(frozen=True, slots=True)
class Exists:
    """Outcome: `Existed` (stat or None). A watch is armed in both cases and fires on creation, change and deletion."""

    path: str
    watch: bool = False


@dataclass(frozen=True, slots=True)
class Children:
    """Outcome: `Listed`: child names, sorted. Errors: NoNode."""

    path: str
    watch: bool = False


@dataclass(frozen=True, slots=True)
class Set:
    """Replace data; `version` -1 means any. Outcome: `Written`. Errors: NoNode, BadVersion."""

    path: str
    data: bytes
    version: int = -1


@dataclass(frozen=True, slots=True)
class Delete:
    """Outcome: `Deleted`. Errors: NoNode, BadVersion, NotEmpty."""

    path: str
    version: int = -1


@dataclass(frozen=True, slots=True)
class Check:
    """Only inside a `Multi`: fail all of it unless the znode has this version. Outcome there: `Checked`."""

    path: str
    version: int


@dataclass(frozen=True, slots=True)
class Multi:
    """All or nothing, in one transaction. Outcome: `Done`, one result an operation in order; a `Created` in it has no
    stat of its own (ZooKeeper does not send one), so `stat` is None there.
    Error: `MultiFailed` with the index and the error of the first operation that failed."""

    ops: tuple[Create | Set | Delete | Check, ...]


Op = Create | Get | Exists | Children | Set | Delete | Multi


# --- outcomes ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Created:
    path: str
    stat: Stat | None


@dataclass(frozen=True, slots=True)
class Got:
    data: bytes
    stat: Stat


@dataclass(frozen=True, slots=True)
class Existed:
    stat: Stat | None


@dataclass(frozen=True, slots=True)
class Listed:
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Written:
    stat: Stat


@dataclass(frozen=True, slots=True)
class Deleted:
    pass


@dataclass(frozen=True, slots=True)
class Checked:
    pass


@dataclass(frozen=True, slots=True)
class Done:
    results: tuple[Created | Written | Deleted | Checked, ...]


Result = Created | Got | Existed | Listed | Written | Deleted | Done


class TreeError(Exception):
    """Base of all that can go wrong; `path` is the znode it went wrong at. Also used as a value: an outcome."""

    def __init__(self, path: str, detail: str = "") -> None:
        super().__init__(f"{type(self).__name__} at {path}" + (f": {detail}" if detail else ""))
        self.path = path
        self.detail = detail


class NoNode(TreeError):
    pass


class NodeExists(TreeError):
    pass


class BadVersion(TreeError):
    pass


class NotEmpty(TreeError):
    pass


class ConnectionLost(TreeError):
    """No answer came: the operation may have happened. Look before you repeat it: when the session is CONNECTED again
    this is decided, and what happened is there to be seen."""


class SessionExpired(TreeError):
    """The session was over before the operation was carried out: it did not happen."""


class Overloaded(TreeError):
    """More calls are waiting in this session than `max_waiting`: it was not sent. Come back later."""


class Refused(TreeError):
    """The server or the client refused it for another reason (too large, no rights, malformed path)."""


class MultiFailed(TreeError):
    """One operation of a Multi failed, so none happened. `index`: which; `cause`: why."""

    def __init__(self, path: str, index: int, cause: TreeError) -> None:
        super().__init__(path, f"operation {index} failed: {cause}")
        self.index = index
        self.cause = cause


Outcome = Result | TreeError


# --- events -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SessionChanged:
    """`session_id` is the id of the session that is now CONNECTED, or of the one that is SUSPENDED or LOST.
    `timeout_s`: of one that is CONNECTED, as it was granted, which need not be what was asked for."""

    state: SessionState
    session_id: int
    timeout_s: float = 0.0


@dataclass(frozen=True, slots=True)
class WatchFired:
    path: str


TreeEvent = SessionChanged | WatchFired


class Tree(Protocol):
    """One session's view of the tree. All calls and callbacks happen on the owner's event loop."""

    def submit(self, op: Op, done: Callable[[Outcome], None]) -> None:
        """Start `op`; `done` is called exactly once, never from inside `submit`."""

    def listen(self, listener: Callable[[TreeEvent], None]) -> None:
        """Add a listener for session changes and fired watches. Every listener sees every event."""

    @property
    def state(self) -> SessionState: ...

    @property
    def session_id(self) -> int: ...

    @property
    def operations(self) -> dict[str, int]:
        """How many operations were sent so far, by kind ("create", "get", …, "multi"): for traces and metrics."""
