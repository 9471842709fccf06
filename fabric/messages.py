"""Every peer message, one frozen struct each, and the one union of them all.

Three kinds of talk:

- *calls in a rack*: somebody (a coordinator, the API) sends a rack leader a `RackCall`: one `Command` for every agent
  of the rack, or one for each named agent. The leader passes them on in parallel as `NodeCall`s, gathers the
  `NodeAnswer`s, and returns one `RackAnswer` when all are in or its wait is over (SmartCloud, steps 4 and 5).
- *requests to a leader*: `Submit` (step 3), `FindHolders` and `PickStores` (steps 7 and 8), `RackStatusCall`.
- *news*: `Heartbeat` and `NodeReport`, which nobody waits for and which may be lost.

Every call has an id and a deadline; what an agent may be told, and how it is kept from acting on old orders, is in
`fabric.commands`. Durations are milliseconds. Everything has a bound, checked where it comes in.

Structs rather than dataclasses, because msgspec's tagged unions decode them strictly in one pass.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from fabric.commands import MAX_NODES, Answer, Command, DigestText, Lines, Message, Millis, Progress, Tally
from fabric.records import (
    Address,
    DeploymentId,
    Digest,
    Guid,
    Label,
    LayerName,
    Line,
    ManagentPath,
    Name,
    Number,
    Text,
)
from fabric.resources import Resources
from zk.tree import MAX_DATA_BYTES

PROTOCOL = (2, 0)
"""(major, minor). Another major version is refused; a minor one only adds fields with defaults."""

CallId = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]


# --- calls in a rack -------------------------------------------------------------------------------------------------


class NodeCommand(msgspec.Struct, frozen=True):
    node: Name
    command: Command


class NodeResult(msgspec.Struct, frozen=True):
    node: Name
    answer: Answer


class RackCall(Message, frozen=True):
    """To a rack leader: pass `everyone` to all agents of the rack, or `commands` to those named, wait `wait_ms`."""

    call: CallId
    wait_ms: Millis
    everyone: Command | None = None
    commands: Annotated[tuple[NodeCommand, ...], msgspec.Meta(max_length=MAX_NODES)] = ()


class RackAnswer(Message, frozen=True):
    """`silent` were asked and did not answer in time, or are known not to; `absent` are no members of the rack now.
    `leads` is False when the receiver does not lead (any more): ask ZooKeeper who does. `messages`: sent for this."""

    call: CallId
    rack: Name
    leads: bool
    results: Annotated[tuple[NodeResult, ...], msgspec.Meta(max_length=MAX_NODES)] = ()
    silent: Lines = ()
    absent: Lines = ()
    messages: Tally = 0


class NodeCall(Message, frozen=True):
    call: CallId
    command: Command


class Vitals(msgspec.Struct, frozen=True, array_like=True):
    """What a rack leader knows of an agent. `free`: to instances; `free_bytes`: of a store."""

    free: Resources
    cordoned: bool
    instances: Number
    reserved: Number
    images: Number
    free_bytes: Number


class NodeAnswer(Message, frozen=True):
    """`vitals`: when they have changed since the leader was told last; it spares a heartbeat."""

    call: CallId
    node: Name
    answer: Answer
    vitals: Vitals | None = None


# --- requests to a leader --------------------------------------------------------------------------------------------


class RecordSeen(msgspec.Struct, frozen=True, array_like=True):
    """A deployment's record as somebody wrote it, and what ZooKeeper said of that write: see `zk.tree.Stat`."""

    data: Annotated[bytes, msgspec.Meta(max_length=MAX_DATA_BYTES)]
    version: Number
    czxid: Number
    mzxid: Number
    ctime_ms: Number = 0
    mtime_ms: Number = 0


class Submit(Message, frozen=True):
    """Step 3: take this deployment in charge. `considered` leaders were seen in ZooKeeper when this one was picked.
    `seen`: the record as the submitter has just written it, which spares reading it; a claim under an older version
    fails, and is repeated after reading."""

    call: CallId
    deployment: DeploymentId
    accepted_ms: Number
    considered: Number
    load: Number
    seen: RecordSeen | None = None


class Submitted(Message, frozen=True):
    call: CallId
    taken: bool
    reason: Text


class FindHolders(Message, frozen=True):
    """Step 7: who holds this image? Not those in `exclude`, which failed the asker. `anew`: what was found before, or
    is being asked already, does not count."""

    call: CallId
    digest: Digest
    want: Annotated[int, msgspec.Meta(ge=1, le=16)]
    exclude: Lines
    salt: Line
    anew: bool


class HolderRef(msgspec.Struct, frozen=True):
    node: Name
    rack: Name
    endpoint: Address


class Holders(Message, frozen=True):
    """Step 9: the chosen ones; `found` are all that have it. `silent` storage agents did not answer."""

    call: CallId
    digest: DigestText
    leads: bool
    chosen: Annotated[tuple[HolderRef, ...], msgspec.Meta(max_length=16)]
    found: Lines
    silent: Lines
    messages: Tally


class PickStores(Message, frozen=True):
    """For a push: `want` storage agents in different racks with room for `size` bytes, best first."""

    call: CallId
    size: Number
    want: Annotated[int, msgspec.Meta(ge=1, le=16)]
    salt: Line


class RackStatusCall(Message, frozen=True):
    call: CallId


class NodeStatus(msgspec.Struct, frozen=True):
    """A node as its rack leader sees it by heartbeats. `heard_ms`: since the last one (-1: never)."""

    node: Name
    rack: Name
    layer: LayerName
    address: Address
    data_endpoint: Line
    total: Resources
    free: Resources
    cordoned: bool
    instances: Number
    reserved: Number
    heard_ms: Annotated[int, msgspec.Meta(ge=-1, lt=1 << 53)]
    silent: bool
    driver: Label
    host: Line
    pid: Number
    images: Number
    free_bytes: Number
    managent: ManagentPath = ""


class RackStatus(Message, frozen=True):
    """`images_lacking`: contents in this storage leader's share that have too few holders, all of them in one rack, or
    a damaged copy; `images_lost`: those of them that nobody holds whole. Each content is in one leader's share."""

    call: CallId
    rack: Name
    layer: LayerName
    leads: bool
    leader: Line
    epoch: Number
    nodes: Annotated[tuple[NodeStatus, ...], msgspec.Meta(max_length=MAX_NODES)]
    images_lacking: Number = 0
    images_lost: Number = 0


# --- news ------------------------------------------------------------------------------------------------------------


class LeaderHello(Message, frozen=True):
    """A rack leader to an agent of its rack: I lead, under this epoch; send your heartbeats here."""

    rack: Name
    layer: LayerName
    epoch: Number
    address: Address
    interval_ms: Annotated[int, msgspec.Meta(ge=100, le=60_000)]


class Heartbeat(Message, frozen=True):
    node: Name
    guid: Guid
    vitals: Vitals


class RecordNews(Message, frozen=True):
    """A coordinator to whom it has the deployment from: this is what I wrote. `closed`: and it is at rest. It may be
    lost; ZooKeeper has it."""

    deployment: DeploymentId
    seen: RecordSeen
    closed: bool


class NodeReport(Message, frozen=True):
    """An agent to the coordinator whose Confirm or Stop it carries out, on every change; may be lost."""

    deployment: DeploymentId
    epoch: Number
    node: Name
    rack: Name
    progress: Progress


class HoldersChanged(Message, frozen=True):
    """A storage leader to the others: in my rack a storage agent came, went, or has lost an image. Look sooner."""

    rack: Name


_Calls = RackCall | RackAnswer | NodeCall | NodeAnswer
_Requests = Submit | Submitted | FindHolders | Holders | PickStores | RackStatusCall | RackStatus
_News = LeaderHello | Heartbeat | NodeReport | RecordNews | HoldersChanged
AnyMessage = _Calls | _Requests | _News
