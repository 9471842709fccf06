"""What the znodes hold, typed. JSON, so that an operator can read them with any ZooKeeper client.

Decoding is strict: a znode that somebody wrote by hand and got wrong is a `BadRecord` with the path and the reason,
never a surprise further in. Unknown fields are ignored, so that an older agent reads a newer minor version's record.

A deployment is the one record that grows, by its plan: 10,000 ordinals on 5,000 nodes as a list of objects are 310 KB,
more than a znode may have (zk.tree.MAX_DATA_BYTES). So it is written compactly (`encode`):

- the plan is grouped by rack: `"plan": {"r1": "r1c01=0-1 r1c02=2-3", "r2": "r2c01=4"}`;
- a record that is still over PACK_OVER_BYTES is packed: the bytes `z1`, then the same JSON compressed with zlib. Plain
  JSON begins with a brace, so one is never taken for the other. To read one by hand, cut off two bytes and inflate.

In memory a plan is a tuple of `Share`s; racks come back in the order in which they first were in it.
"""

from __future__ import annotations

import re
import zlib
from typing import Annotated, Literal, TypeVar

import msgspec

from fabric.ordinals import MAX_COUNT, check_ordinals, parse_ordinals
from fabric.resources import Amount, Resources

_NAME = r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?"
Name = Annotated[str, msgspec.Meta(pattern=rf"^{_NAME}\Z")]
"""Names of nodes, racks, images: they are parts of znode paths and of file names."""

DeploymentId = Annotated[str, msgspec.Meta(pattern=r"^d-[0-9a-z]{6,24}\Z")]
Digest = Annotated[str, msgspec.Meta(pattern=r"^b3:[0-9a-f]{64}\Z")]
Address = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
Guid = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{8,32}\Z")]
Text = Annotated[str, msgspec.Meta(max_length=2000)]
Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT)]
OrdinalText = Annotated[str, msgspec.Meta(max_length=64 * 1024)]
"""Ranges, see ordinals.py. The pattern is more than a type can say: a struct that has such a field checks it in its
`__post_init__`, which makes a text that is none a decoding error."""

Number = Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]
"""Counters, bytes, process ids, ms since 1970, and zxids: sums of thousands of peers' numbers still fit the 64 bits of
a message. ZooKeeper's zxids have 64 bits too, its epoch in the upper 32: they are below 2^53 until its two millionth
election of a leader."""

Label = Annotated[str, msgspec.Meta(max_length=64)]
"""Names of ours that are no part of any path: a flavor, a driver, a state, a dimension."""

Line = Annotated[str, msgspec.Meta(max_length=256)]
"""A host, an endpoint that may be empty."""

ManagentPath = Annotated[str, msgspec.Meta(max_length=512)]
"""For people to read: whoever acts on a managent knows its path from the directory."""

Environment = Annotated[
    dict[Line, Annotated[str, msgspec.Meta(max_length=4096)]],
    msgspec.Meta(max_length=128),
]
"""Of an instance; the API takes less."""

Seconds = Annotated[int, msgspec.Meta(ge=0, le=7 * 86_400)]
DEFAULT_LOST_AFTER_S = 10

MAX_SHARES = MAX_COUNT
MAX_SIZES = 8
PACK_OVER_BYTES = 4096
MAX_PLAIN_BYTES = 2 * 1024 * 1024
"""Of a record's JSON, unpacked: 10,000 shares of a deployment with names of 64 characters take 0.8 MB."""

_PACKED = b"z1"

LayerName = Literal["compute", "storage"]
Policy = Literal["spread", "pack"]
Restart = Literal["always", "on-failure", "never"]
State = Literal["accepted", "placing", "starting", "running", "failed", "deleting", "deleted"]
FINAL_STATES: frozenset[str] = frozenset({"running", "failed", "deleted"})


class BadRecord(Exception):
    """A znode's content is not what it should be."""


class Member(msgspec.Struct, frozen=True):
    """/members/{layer}/{rack}/{node}: who is here. `address` is the control endpoint with the incarnation;
    `data_endpoint` serves image chunks (storage layer only). `protocol` is (major, minor).
    `managent`: its path, when it was deployed as one (deploy/), else ""."""

    node: Name
    rack: Name
    layer: LayerName
    guid: Guid
    address: Address
    data_endpoint: Line
    total: Resources
    driver: Label
    protocol: tuple[Number, Number]
    host: Line
    pid: Number
    managent: ManagentPath = ""


class Leader(msgspec.Struct, frozen=True):
    """/leaders/{layer}/{rack}: who leads. The epoch is the znode's czxid, so it is not in here. `load` is a hint:
    how many requests it coordinates."""

    node: Name
    rack: Name
    guid: Guid
    address: Address
    load: Number = 0


class Owner(msgspec.Struct, frozen=True):
    """/open/{id}/owner: who coordinates. The deployment's epoch is the znode's czxid."""

    node: Name
    guid: Guid
    address: Address


class Share(msgspec.Struct, frozen=True):
    """One node's part of a plan."""

    node: Name
    rack: Name
    ordinals: OrdinalText

    def __post_init__(self) -> None:
        check_ordinals(self.ordinals)

    def numbers(self) -> tuple[int, ...]:
        return parse_ordinals(self.ordinals)


class Spec(msgspec.Struct, frozen=True):
    """What an agent must know to run instances of a deployment."""

    image: Name
    digest: Digest
    flavor: Label
    resources: Resources
    environment: Environment
    restart: Restart
    stop_after_s: Seconds = 0
    """Out of touch with ZooKeeper for so long, a node stops its instances of this deployment. 0: they run on."""


class Size(msgspec.Struct, frozen=True, array_like=True):
    """A flavor, briefly."""

    flavor: Label
    vcpus: Amount
    memory_mib: Amount
    disk_mib: Amount

    @property
    def resources(self) -> Resources:
        return Resources(self.vcpus, self.memory_mib, self.disk_mib)


class Unplanned(msgspec.Struct, frozen=True):
    """A deployment but for its plan, which is not written as it is in memory. A record can be read as one (`decode`) by
    who does not ask where it is: a plan of 500 nodes takes a hundred times longer than the rest."""

    id: DeploymentId
    name: str
    spec: Spec
    count: Count
    min_count: Count
    policy: Policy
    created_ms: Number
    updated_ms: Number
    max_per_node: Count = 0
    max_per_rack: Count = 0
    labels: dict[str, str] = {}
    gone: bool = False
    state: State = "accepted"
    generation: Number = 1
    settled: Number = 0
    had: Count = 0
    epoch: Number = 0
    step: Number = 0
    reason: str = ""
    reasons: tuple[str, ...] = ()
    key: str = ""
    lost_after_s: Seconds = DEFAULT_LOST_AFTER_S
    exclusive: bool = False
    lacking: Count = 0
    moved: OrdinalText = ""
    smaller: Annotated[tuple[Size, ...], msgspec.Meta(max_length=MAX_SIZES)] = ()

    @property
    def final(self) -> bool:
        return self.state in FINAL_STATES and self.settled == self.generation


class _Written(Unplanned, frozen=True):
    """As it is in the znode: rack -> its shares, "node=ordinals" with a space between them."""

    plan: dict[Name, str] = {}
    leaving: dict[Name, str] = {}
    stopping: dict[Name, str] = {}


class Deployment(Unplanned, frozen=True):
    """/deployments/{id}: desired state (`count`, `gone`), where it is (`state`, `plan`), and why (`reason`).

    `generation` grows with every change a user makes; `settled` is the generation that the last coordinator brought
    to an end: the deployment is at rest when both are equal. `epoch` and `step` are those of the coordinator's claim
    and of the command round for which `plan` was written: an agent's own are compared with them.
    `had`: ordinals 0 … had-1 ran when it was last settled; a change that cannot be made goes back to them.
    `placed` is how many ordinals the plan has; below `count` it was placed short (`min_count`). Times: ms since 1970.

    A node that vanished is replaced `lost_after_s` later (after ZooKeeper counted it out); `lacking` ordinals of a
    settled deployment ran, were lost, and have no other place yet; `moved`, below `had`, were given another place since
    it was settled. `leaving`: ordinals that run elsewhere by the plan,
    or are about to, and still at their old node too, which is being drained; with `exclusive` they are stopped there
    before they start elsewhere, and are never in two places. `stopping`: ordinals that left the plan and may run there
    still; whoever coordinates sees to their end before it places them anew.
    `smaller`: flavors to think of when there is no room for this one, the nearest first; empty once it ran or failed.
    Raises ValueError for a plan that has an ordinal twice, or two shares of one node.
    """

    plan: tuple[Share, ...] = ()
    leaving: tuple[Share, ...] = ()
    stopping: tuple[Share, ...] = ()

    def __post_init__(self) -> None:
        _check_shares("plan", self.plan)
        _check_shares("leaving", self.leaving)
        if len(self.stopping) > MAX_SHARES:
            raise ValueError(f"stopping: expected at most {MAX_SHARES} shares, found {len(self.stopping)}")
        check_ordinals(self.moved)

    @property
    def placed(self) -> int:
        return sum(len(share.numbers()) for share in self.plan)


def _check_shares(what: str, shares: tuple[Share, ...]) -> None:
    if len(shares) > MAX_SHARES:
        raise ValueError(f"{what}: expected at most {MAX_SHARES} shares, found {len(shares)}")
    places: set[tuple[str, str]] = set()
    seen: set[int] = set()
    for share in shares:
        place = (share.rack, share.node)
        if place in places:
            raise ValueError(f"{what}: expected one share a node, found two of {share.rack}/{share.node}")
        places.add(place)
        ordinals = share.numbers()
        if not seen.isdisjoint(ordinals):
            twice = min(seen.intersection(ordinals))
            raise ValueError(f"{what}: expected each ordinal once, found {twice} again at {share.rack}/{share.node}")
        seen.update(ordinals)


class Lost(msgspec.Struct, frozen=True):
    """/lost/{node}: a compute node that had been here and is not, found by its rack's leader (or, in a rack without
    one, by another). `accepted_ms`: since when it is replaced, which is decided a moment later, because many that
    vanish at once are first waited for (the brake); 0: not yet. `by`: who decided: a leader's node, or "operator".
    The znode goes when the node is back."""

    node: Name
    rack: Name
    since_ms: Number
    accepted_ms: Number = 0
    by: Label = ""


class Drain(msgspec.Struct, frozen=True):
    """/drains/{node}: start elsewhere what runs there, then stop it there. `deadline_ms`: what found no other place by
    then is stopped all the same."""

    node: Name
    since_ms: Number
    deadline_ms: Number


class Key(msgspec.Struct, frozen=True):
    """/keys/{digest}: which deployment an Idempotency-Key made, and the digest of the body it came with."""

    deployment: DeploymentId
    body: str


class Image(msgspec.Struct, frozen=True):
    """/images/{name}. `holders` are those that acknowledged the push: a hint, the storage agents know better.
    `content` is the digest of the whole content that the user gave, if one was given."""

    name: Name
    digest: Digest
    size: Number
    kind: Literal["tar", "executable"]
    holders: tuple[str, ...]
    pushed_ms: Number
    content: str = ""


R = TypeVar("R", bound=msgspec.Struct)


_SHARE = re.compile(rf"({_NAME})=([0-9,-]*)")
_FIELDS = Unplanned.__struct_fields__
_SHARES = ("plan", "leaving", "stopping")


def encode(record: msgspec.Struct) -> bytes:
    """A record as a znode's content. A deployment of 10,000 ordinals has a few KB on 400 nodes, on 5,000 below 64."""
    if not isinstance(record, Deployment):
        return msgspec.json.encode(record)
    fields = {name: getattr(record, name) for name in _FIELDS}
    plan, leaving, stopping = (_by_rack(getattr(record, name)) for name in _SHARES)
    return pack(msgspec.json.encode(_Written(**fields, plan=plan, leaving=leaving, stopping=stopping)))


def decode(data: bytes, kind: type[R], where: str) -> R:
    """Decode a znode's content; raises BadRecord naming `where` (the path), what was expected and what was found."""
    try:
        if not issubclass(kind, Deployment):
            return msgspec.json.decode(unpack(data) if kind is Unplanned else data, type=kind)
        written = msgspec.json.decode(unpack(data), type=_Written)
        fields = {name: getattr(written, name) for name in _FIELDS}
        plan, leaving, stopping = (_shares(getattr(written, name)) for name in _SHARES)
        return kind(**fields, plan=plan, leaving=leaving, stopping=stopping)
    except (msgspec.DecodeError, ValueError, RecursionError, zlib.error) as error:
        raise BadRecord(f"{where}: expected a {kind.__name__} record as JSON, found: {error}") from error


def _by_rack(shares: tuple[Share, ...]) -> dict[str, str]:
    racks: dict[str, list[str]] = {}
    for share in shares:
        racks.setdefault(share.rack, []).append(f"{share.node}={share.ordinals}")
    return {rack: " ".join(parts) for rack, parts in racks.items()}


def _shares(plan: dict[str, str]) -> tuple[Share, ...]:
    found: list[Share] = []
    for rack, text in plan.items():
        for part in text.split(" "):
            match = _SHARE.fullmatch(part)
            if match is None:
                raise ValueError(f"plan of {rack}: expected shares such as 'r1c01=0-1 r1c02=2-3', found {part[:80]!r}")
            found.append(Share(match[1], rack, match[3]))
    return tuple(found)


def pack(plain: bytes) -> bytes:
    """JSON as a record that may grow is written: as it is, or, over PACK_OVER_BYTES, packed."""
    return plain if len(plain) <= PACK_OVER_BYTES else _PACKED + zlib.compress(plain, 6)


def unpack(data: bytes) -> bytes:
    """What `pack` was given; raises ValueError or zlib.error when it is none of it, or over MAX_PLAIN_BYTES."""
    if not data.startswith(_PACKED):
        return data
    inflate = zlib.decompressobj()
    plain = inflate.decompress(data[len(_PACKED) :], MAX_PLAIN_BYTES)
    if not inflate.eof or inflate.unused_data:
        raise ValueError(f"packed: expected one whole zlib stream of at most {MAX_PLAIN_BYTES} bytes, unpacked")
    return plain
