"""What a role asks the world to do (effects), and what the world tells it (inputs).

The whole loop of an agent, in the runtime and in the simulator alike:

    effects = agent.start(now)
    forever:
        perform `effects`, in order          # a Send after a Persist leaves only when the Persist is on disk
        wait for an input, or for agent.next_deadline()
        effects = agent.handle(now, input)   # or agent.tick(now) when the deadline passed

Times: `now` is seconds of a clock that only grows; `wall_ms`, milliseconds since 1970, is for what people read.
Performing an effect never fails towards the role: what went wrong comes back as an input.
"""

from __future__ import annotations

from dataclasses import dataclass

from fabric.messages import AnyMessage, HolderRef
from fabric.resources import Resources
from zk.tree import Op, Outcome, SessionChanged, WatchFired

# --- effects ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Send:
    """`to`: an agent's address ("tcp://host:port/guid"), or the `sender` of a `Received` to answer on the same way.
    An agent may send to its own address. A send is never known to have arrived."""

    to: str
    message: AnyMessage


@dataclass(frozen=True, slots=True)
class CallTree:
    """Submit `op` to ZooKeeper; the outcome comes back as `TreeDone` with this token."""

    token: str
    op: Op


@dataclass(frozen=True, slots=True)
class Persist:
    """Make the journal hold `puts` and forget `deletes`, on disk, before any later effect of this agent is performed.
    Values are opaque bytes (JSON of a struct)."""

    puts: tuple[tuple[str, bytes], ...] = ()
    deletes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StartInstance:
    """Start `instance` from image `digest` (which is in the cache) under the driver. Ends in `InstanceStarted`,
    `InstanceFailed`, and later, perhaps, `InstanceExited`, each with the same attempt."""

    instance: str
    attempt: int
    digest: str
    environment: tuple[tuple[str, str], ...]
    resources: Resources


@dataclass(frozen=True, slots=True)
class StopInstance:
    """TERM, KILL after `grace_s`, then remove its directory and log. Ends in `InstanceGone`, also if it was unknown;
    when its start has been asked for since, that comes next, and only the end of a later stop is told."""

    instance: str
    grace_s: float


@dataclass(frozen=True, slots=True)
class FetchImage:
    """Get image `digest` into the cache (compute layer; pinned until `ReleaseImage`) or the store (storage layer), from
    `holders`, at least two at once. With no holders given, the world looks whether it is there already: then
    `ImageReady(cached=True)` comes at once, else `HoldersWanted`, which the role answers with `MoreHolders`. Ends in
    `ImageReady` or `ImageFailed`; `FetchProgress` may come before. One fetch a digest at a time."""

    digest: str
    holders: tuple[HolderRef, ...]


@dataclass(frozen=True, slots=True)
class MoreHolders:
    """Answer to `HoldersWanted`; an empty tuple says that there are no more."""

    digest: str
    holders: tuple[HolderRef, ...]


@dataclass(frozen=True, slots=True)
class ReleaseImage:
    """No instance here uses image `digest` any more: the cache may evict it (compute layer)."""

    digest: str


@dataclass(frozen=True, slots=True)
class DropContent:
    """Storage layer: forget image `digest` and free what no other image uses. Ends in `ContentDropped`."""

    token: str
    digest: str


@dataclass(frozen=True, slots=True)
class FetchLog:
    """The last bytes of an instance's output. Ends in `LogFetched` with this token."""

    token: str
    instance: str
    max_bytes: int


@dataclass(frozen=True, slots=True)
class Note:
    """A line for the agent's log. `level`: info, warning, error."""

    level: str
    text: str


@dataclass(frozen=True, slots=True)
class Quit:
    """The agent cannot go on (its node id is taken, …): leave with this reason. The last effect ever."""

    reason: str


Effect = (
    Send
    | CallTree
    | Persist
    | StartInstance
    | StopInstance
    | FetchImage
    | MoreHolders
    | ReleaseImage
    | DropContent
    | FetchLog
    | Note
    | Quit
)

# --- inputs ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Received:
    """A message. `sender` is an address that an answer can be sent to, valid while the connection lives."""

    sender: str
    message: AnyMessage


@dataclass(frozen=True, slots=True)
class PeerLost:
    """A connection that this agent had opened is broken, to `endpoint` ("tcp://host:port"): whoever was there is most
    likely dead, and what was sent to it may not have arrived."""

    endpoint: str


@dataclass(frozen=True, slots=True)
class TreeDone:
    token: str
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class InstanceStarted:
    """`started_ms`: wall clock. `adopted`: it had been running since before this agent started."""

    instance: str
    attempt: int
    pid: int
    started_ms: int
    directory: str
    adopted: bool = False


@dataclass(frozen=True, slots=True)
class InstanceFailed:
    """It could not be started. `blame`: "image" (it would fail anywhere) or "node"."""

    instance: str
    attempt: int
    blame: str
    reason: str


@dataclass(frozen=True, slots=True)
class InstanceExited:
    """`code` or `signal`; `lost`: it vanished and nobody saw how. `log_tail`: the last lines of its output."""

    instance: str
    attempt: int
    code: int | None
    signal: int | None
    lost: bool
    log_tail: str


@dataclass(frozen=True, slots=True)
class InstanceGone:
    instance: str


@dataclass(frozen=True, slots=True)
class Adopted:
    """The driver is open: `running` and `exited` are the instances that it found from before (each was, or will be,
    told by `InstanceStarted(adopted=True)` or `InstanceExited` before this input). What the journal has and this input
    has not, is not running."""

    running: tuple[str, ...]
    exited: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FetchProgress:
    digest: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class ImageReady:
    """`cached`: it was there already. Milliseconds for getting the bytes and for unpacking them."""

    digest: str
    bytes_by_holder: tuple[tuple[str, int], ...]
    dropped: tuple[str, ...]
    size: int
    fetch_ms: int
    prepare_ms: int
    cached: bool


@dataclass(frozen=True, slots=True)
class ImageFailed:
    """`blame` as in `InstanceFailed`."""

    digest: str
    blame: str
    reason: str


@dataclass(frozen=True, slots=True)
class HoldersWanted:
    """A running fetch has lost its holders `excluded` and asks for others."""

    digest: str
    excluded: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StoreChanged:
    """Storage layer: what the store holds whole now; told at start and after every change. `damaged`: images of which
    it has lost chunks; `FetchImage` of one brings these alone."""

    held: tuple[str, ...]
    free_bytes: int
    busy: int
    damaged: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ContentDropped:
    token: str
    freed_bytes: int


@dataclass(frozen=True, slots=True)
class LogFetched:
    token: str
    known: bool
    data: bytes


@dataclass(frozen=True, slots=True)
class Leave:
    """SIGTERM: give up leadership, unregister, let instances run on; then the role answers `Quit("")`."""


Input = (
    Received
    | PeerLost
    | TreeDone
    | SessionChanged
    | WatchFired
    | InstanceStarted
    | InstanceFailed
    | InstanceExited
    | InstanceGone
    | Adopted
    | FetchProgress
    | ImageReady
    | ImageFailed
    | HoldersWanted
    | StoreChanged
    | ContentDropped
    | LogFetched
    | Leave
)
