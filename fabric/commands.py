"""What an agent is told to do, and what it answers: the commands that a rack leader passes on (see `fabric.messages`).

What changes an agent carries the deployment's `epoch` (ZooKeeper's zxid of the coordinator's claim) and `step` (grows
within an epoch): an agent that has seen a later (epoch, step) of that deployment refuses with `Stale`. Every command
may be repeated without harm.

Everything that a peer may say has a bound, and texts that mean ordinals are checked, here, where it comes in: what the
roles get makes sense one by one. Nothing of this is checked when a role makes a message, but for ordinals.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from fabric.ordinals import MAX_COUNT, check_ordinals
from fabric.records import (
    Address,
    Count,
    DeploymentId,
    Digest,
    Label,
    Line,
    Name,
    Number,
    OrdinalText,
    Policy,
    Spec,
    Text,
)
from fabric.resources import Resources

Millis = Annotated[int, msgspec.Meta(ge=0, le=3_600_000)]
Tally = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]
"""Messages and reads, which leaders and coordinators add up over thousands of peers: a sum is still a `Number`."""
MAX_NODES = 5_000
"""Agents in one rack, at most."""
MAX_HOLDERS = 8
"""Deployments that one node names as holders of reservations."""
Lines = Annotated[tuple[Line, ...], msgspec.Meta(max_length=MAX_NODES)]
"""Names of nodes."""
MAX_LISTED = 256
"""Images asked about in one `ListHeld`: a rack's answers fit in one message even if it has MAX_NODES agents."""
Indices = Annotated[
    tuple[Annotated[int, msgspec.Meta(ge=0, lt=MAX_LISTED)], ...], msgspec.Meta(max_length=MAX_LISTED)
]
"""Places in the list that was asked about."""
DigestText = Annotated[str, msgspec.Meta(max_length=80)]
"""A digest, or empty."""


class Message(msgspec.Struct, frozen=True, tag=True):
    """Base of all; the tag is the class name."""


class AskOffer(Message, frozen=True):
    """How many instances of `resources` could you run now, `wanted` at most? `ticket` is the deployment's seniority
    (its record's czxid): an older one has a smaller ticket. With `best` (0: none) a rack leader may answer for its
    agents by what it knows of them, and name only the `best` for the `policy` (`fabric.roles.known`)."""

    deployment: DeploymentId
    resources: Resources
    wanted: Count
    ticket: Number
    best: Count = 0
    policy: Policy = "spread"


class Holder(msgspec.Struct, frozen=True):
    """Another deployment that has unconfirmed reservations on a node; `reserved` would be free there without them."""

    deployment: DeploymentId
    reserved: Resources


Holders = Annotated[tuple[Holder, ...], msgspec.Meta(max_length=MAX_HOLDERS)]


class Offer(Message, frozen=True):
    """It promises nothing. `count` instances fit now; `held` more would fit if no other request's unconfirmed
    reservations were here, the oldest of which has ticket `oldest` (0: none). `holders`: whose those are, the oldest
    first. `capacity`: how many fit in an empty node. `short`: the dimension that limits. `free` is told by a cordoned
    node too: what it could take if it were not. `registered`: the zxid of the node's registration; a claim that is
    older can't place anything there (see `fabric.roles.compute`)."""

    count: Count
    free: Resources
    total: Resources
    cordoned: bool
    held: Count
    oldest: Number
    capacity: Count
    short: Label
    holders: Holders
    registered: Number = 0


class Reserve(Message, frozen=True):
    """Try: set aside capacity for `ordinals` for `ttl_ms`."""

    deployment: DeploymentId
    epoch: Number
    step: Number
    ticket: Number
    resources: Resources
    ordinals: OrdinalText
    ttl_ms: Millis

    def __post_init__(self) -> None:
        check_ordinals(self.ordinals)


class Reserved(Message, frozen=True):
    """`granted` of the asked ordinals; the others as in `Offer`, after granting."""

    granted: OrdinalText
    count: Count
    held: Count
    oldest: Number
    free: Resources
    holders: Holders

    def __post_init__(self) -> None:
        check_ordinals(self.granted)


class Confirm(Message, frozen=True):
    """The plan is written: run `ordinals`. Repeated, it asks how they are. Progress goes to `report_to`."""

    deployment: DeploymentId
    epoch: Number
    step: Number
    spec: Spec
    ordinals: OrdinalText
    report_to: Address

    def __post_init__(self) -> None:
        check_ordinals(self.ordinals)


class Cancel(Message, frozen=True):
    """Give reservations of this deployment back (those not confirmed)."""

    deployment: DeploymentId
    epoch: Number
    step: Number


class Stop(Message, frozen=True):
    """Stop these ordinals of the deployment; `everything` of it if so said. Repeated, it asks whether they are gone."""

    deployment: DeploymentId
    epoch: Number
    step: Number
    ordinals: OrdinalText
    everything: bool = False

    def __post_init__(self) -> None:
        check_ordinals(self.ordinals)


class OrdinalFailure(msgspec.Struct, frozen=True):
    """`blame` image: it would fail anywhere. `blame` node: another node may do."""

    ordinal: Count
    blame: Label
    reason: Text


class FetchNote(msgspec.Struct, frozen=True):
    """How an agent got the image (steps 7 to 9), for the trace."""

    storage_leader: Line
    found: Lines
    chosen: Lines
    bytes_by_holder: Annotated[dict[Line, Number], msgspec.Meta(max_length=MAX_NODES)]
    dropped: Lines
    find_ms: Number
    fetch_ms: Number
    cached: bool


class Progress(Message, frozen=True):
    """Answer to `Confirm` and `Stop`, and content of a `NodeReport`: where this deployment's ordinals are on the node.
    `refused`: ordinals that the node will not run (no capacity any more). `done_bytes` of `total_bytes` fetched."""

    running: OrdinalText
    waiting: OrdinalText
    stopping: OrdinalText
    refused: OrdinalText
    failed: Annotated[tuple[OrdinalFailure, ...], msgspec.Meta(max_length=MAX_COUNT)]
    done_bytes: Number
    total_bytes: Number
    fetch: FetchNote | None
    prepare_ms: Number
    start_ms: Number
    messages: Tally
    reads: Tally

    def __post_init__(self) -> None:
        for text in (self.running, self.waiting, self.stopping, self.refused):
            if text:
                check_ordinals(text)


class Cancelled(Message, frozen=True):
    pass


class Stale(Message, frozen=True):
    """Refused: the agent has seen a later (epoch, step) of this deployment."""

    epoch: Number
    step: Number


class Describe(Message, frozen=True):
    """Which instances do you have? Of one deployment, or (empty) of all; at most `limit`."""

    deployment: Label
    limit: Count


class InstanceView(msgspec.Struct, frozen=True):
    """One instance as its node sees it. `state`: recovering, parked, assigned, fetching, starting, running, backoff,
    exited, failed, stopping. `started_ms` is 0 before the first start."""

    id: Label
    deployment: DeploymentId
    ordinal: Count
    node: Name
    rack: Name
    flavor: Label
    image: Label
    state: Label
    pid: Number
    attempt: Number
    started_ms: Number
    directory: Annotated[str, msgspec.Meta(max_length=4096)]
    driver: Label
    reason: Text


class Held(msgspec.Struct, frozen=True):
    """Reserved for ordinals of a deployment. `left_ms`: until the last of these reservations ends by itself."""

    deployment: DeploymentId
    ordinals: OrdinalText
    left_ms: Annotated[int, msgspec.Meta(gt=-(1 << 53), lt=1 << 53)]

    def __post_init__(self) -> None:
        check_ordinals(self.ordinals)


class Described(Message, frozen=True):
    """`reserved`: of the same deployments, what is set aside and not confirmed."""

    instances: Annotated[tuple[InstanceView, ...], msgspec.Meta(max_length=MAX_COUNT)]
    more: bool
    reserved: Annotated[tuple[Held, ...], msgspec.Meta(max_length=MAX_COUNT)] = ()


class Verify(Message, frozen=True):
    """Look at this deployment's record now, and stop what of it is not meant to run on your node."""

    deployment: DeploymentId


class Verifying(Message, frozen=True):
    """The record is being read. `known`: something of the deployment is on the node."""

    known: bool


class ReadLog(Message, frozen=True):
    """The last `max_bytes` of an instance's output."""

    instance: Label
    max_bytes: Annotated[int, msgspec.Meta(ge=0, le=1 << 20)]


class LogText(Message, frozen=True):
    known: bool
    data: bytes


class HasImage(Message, frozen=True):
    """Do you have a whole verified copy? (Step 8.) An empty digest asks for free space only."""

    digest: DigestText


class ImageHeld(Message, frozen=True):
    held: bool
    data_endpoint: Line
    free_bytes: Number
    busy: Number


class ListHeld(Message, frozen=True):
    """Which of these images do you have? One question for many, so that who repairs or audits asks once for all."""

    digests: Annotated[tuple[Digest, ...], msgspec.Meta(max_length=MAX_LISTED)]


class HeldList(Message, frozen=True):
    """Answer to `ListHeld`: indices of its digests. `held`: a whole verified copy; `copying`: one is being fetched
    (see `Replicate`); `damaged`: some of its chunks were lost or rotten, the others are there. `copies`: how many
    images are being fetched here in all. `busy` as in `ImageHeld`."""

    held: Indices
    copying: Indices
    damaged: Indices
    copies: Number
    data_endpoint: Line
    free_bytes: Number
    busy: Number


class DropImage(Message, frozen=True):
    """No image name refers to this content any more: free it."""

    digest: Digest


class Dropped(Message, frozen=True):
    freed_bytes: Number


class Replicate(Message, frozen=True):
    """Fetch this image from these data endpoints and hold it. Repeated, it asks how far that is: `done`, or failed for
    `reason` (which is told once; one more begins anew), or neither while it is under way."""

    digest: Digest
    sources: Annotated[tuple[Address, ...], msgspec.Meta(max_length=MAX_NODES)]


class Replicating(Message, frozen=True):
    done: bool
    reason: Text


class Unable(Message, frozen=True):
    """The agent understood the command but cannot do it: wrong layer, or a value that makes no sense."""

    reason: Text


Command = (
    AskOffer
    | Reserve
    | Confirm
    | Cancel
    | Stop
    | Describe
    | Verify
    | ReadLog
    | HasImage
    | ListHeld
    | DropImage
    | Replicate
)
Answer = (
    Offer
    | Reserved
    | Progress
    | Cancelled
    | Stale
    | Described
    | Verifying
    | LogText
    | ImageHeld
    | HeldList
    | Dropped
    | Replicating
    | Unable
)
