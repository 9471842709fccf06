"""What the znodes hold, typed. JSON, so that an operator can read them with any ZooKeeper client.

Decoding is strict: a znode that somebody wrote by hand and got wrong is a `BadRecord` with the path and the reason,
never a surprise further in. Unknown fields are ignored, so that an older agent reads a newer minor version's record.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

import msgspec

from fabric.ordinals import MAX_COUNT, parse_ordinals
from fabric.resources import Resources

Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$")]
"""Names of nodes, racks, images: they are parts of znode paths and of file names."""

DeploymentId = Annotated[str, msgspec.Meta(pattern=r"^d-[0-9a-z]{6,24}$")]
Digest = Annotated[str, msgspec.Meta(pattern=r"^b3:[0-9a-f]{64}$")]
Address = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
Guid = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{8,32}$")]
Text = Annotated[str, msgspec.Meta(max_length=2000)]
Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT)]
OrdinalText = Annotated[str, msgspec.Meta(max_length=64 * 1024)]

LayerName = Literal["compute", "storage"]
Policy = Literal["spread", "pack"]
Restart = Literal["always", "on-failure", "never"]
State = Literal["accepted", "placing", "starting", "running", "failed", "deleting", "deleted"]
FINAL_STATES: frozenset[str] = frozenset({"running", "failed", "deleted"})


class BadRecord(Exception):
    """A znode's content is not what it should be."""


class Member(msgspec.Struct, frozen=True):
    """/members/{layer}/{rack}/{node}: who is here. `address` is the control endpoint with the incarnation;
    `data_endpoint` serves image chunks (storage layer only). `protocol` is (major, minor)."""

    node: Name
    rack: Name
    layer: LayerName
    guid: Guid
    address: Address
    data_endpoint: str
    total: Resources
    driver: str
    protocol: tuple[int, int]
    host: str
    pid: int


class Leader(msgspec.Struct, frozen=True):
    """/leaders/{layer}/{rack}: who leads. The epoch is the znode's czxid, so it is not in here. `load` is a hint:
    how many requests it coordinates."""

    node: Name
    rack: Name
    guid: Guid
    address: Address
    load: int = 0


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

    def numbers(self) -> tuple[int, ...]:
        return parse_ordinals(self.ordinals)


class Spec(msgspec.Struct, frozen=True):
    """What an agent must know to run instances of a deployment."""

    image: Name
    digest: Digest
    flavor: str
    resources: Resources
    environment: dict[str, str]
    restart: Restart


class Deployment(msgspec.Struct, frozen=True):
    """/deployments/{id}: desired state (`count`, `gone`), where it is (`state`, `plan`), and why (`reason`).

    `generation` grows with every change a user makes; `settled` is the generation that the last coordinator brought
    to an end: the deployment is at rest when both are equal. `epoch` and `step` are those of the coordinator's claim
    and of the command round for which `plan` was written: an agent's own are compared with them.
    `had`: ordinals 0 … had-1 ran when it was last settled; a change that cannot be made goes back to them.
    `placed` is how many ordinals the plan has; below `count` it was placed short (`min_count`). Times: ms since 1970.
    """

    id: DeploymentId
    name: str
    spec: Spec
    count: Count
    min_count: Count
    policy: Policy
    created_ms: int
    updated_ms: int
    max_per_node: Count = 0
    max_per_rack: Count = 0
    labels: dict[str, str] = {}
    gone: bool = False
    state: State = "accepted"
    generation: int = 1
    settled: int = 0
    had: Count = 0
    epoch: int = 0
    step: int = 0
    plan: tuple[Share, ...] = ()
    reason: str = ""
    reasons: tuple[str, ...] = ()
    key: str = ""

    @property
    def placed(self) -> int:
        return sum(len(share.numbers()) for share in self.plan)

    @property
    def final(self) -> bool:
        return self.state in FINAL_STATES and self.settled == self.generation


class Key(msgspec.Struct, frozen=True):
    """/keys/{digest}: which deployment an Idempotency-Key made, and the digest of the body it came with."""

    deployment: DeploymentId
    body: str


class Image(msgspec.Struct, frozen=True):
    """/images/{name}. `holders` are those that acknowledged the push: a hint, the storage agents know better.
    `content` is the digest of the whole content that the user gave, if one was given."""

    name: Name
    digest: Digest
    size: int
    kind: Literal["tar", "executable"]
    holders: tuple[str, ...]
    pushed_ms: int
    content: str = ""


R = TypeVar("R", bound=msgspec.Struct)


def encode(record: msgspec.Struct) -> bytes:
    return msgspec.json.encode(record)


def decode(data: bytes, kind: type[R], where: str) -> R:
    """Decode a znode's content; raises BadRecord naming `where` (the path), what was expected and what was found."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRecord(f"{where}: expected a {kind.__name__} record as JSON, found: {error}") from error
