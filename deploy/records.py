"""What the directory holds, and what messages carry of it (HPL-2001-321, section 2.3).

Two topology models. *Boot stubs*: one `StubRecord` a stub. *Managents*: one `Table` an initiator, with a row for each
of its children: so a topology of 10,000 managents under 1,000 initiators is 1,000 znodes, and an initiator that deploys
ten children writes a few times in all. Only the initiator of that path writes its table; what stands in it before a
command is sent lets a successor go on without deploying anything twice.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from deploy.identity import Path
from deploy.states import EnvState, LifeState
from fabric.records import Address, Guid, Label, Line, Number

StubName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_]([A-Za-z0-9._-]{0,62}[A-Za-z0-9_-])?\Z")]
"""A boot stub's name, unique in its directory: the host's name, unless an operator says otherwise."""

Reason = Annotated[str, msgspec.Meta(max_length=500)]
Print = Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{16})?\Z")]
Url = Annotated[str, msgspec.Meta(max_length=2000)]
MAX_STUBS_IN_DOMAIN = 20_000
MAX_STEPS = 16
MAX_LEFT = 8
MAX_CHILDREN = 10_000
"""Of one initiator."""

Outcome = Literal["pending", "done", "refused", "failed", "unreachable"]
"""Of the last thing that was wanted of a managent. refused: by its boot stub, as the state did not allow it; failed:
tried, and given up; unreachable: its boot stub, or an initiator on the way, does not answer."""


class StubRef(msgspec.Struct, frozen=True, array_like=True):
    """Where a boot stub is reached. `domain`: the path of the domain that its machine belongs to, "" for none."""

    name: StubName
    address: Address
    domain: Path = ""


class StubRecord(msgspec.Struct, frozen=True):
    """In the directory. `by`: which of the three ways of section 2.3 it came by. `address` is "" for a stub that an
    operator listed and that has not reported yet."""

    name: StubName
    address: Annotated[str, msgspec.Meta(max_length=256)]
    domain: Path
    guid: Annotated[str, msgspec.Meta(max_length=32)]
    host: Line
    pid: Number
    by: Literal["operator", "boot", "discovery"]


class Prints(msgspec.Struct, frozen=True, array_like=True):
    """Fingerprints of what a managent was made from: 16 hex digits of BLAKE3 over the references' contents in order;
    `managent` also over the start command and the lease that its initiator tells, where it does. "": nothing matched,
    or nothing is there."""

    code: Print = ""
    install: Print = ""
    managent: Print = ""


class Child(msgspec.Struct, frozen=True, array_like=True):
    """A row of a table. `attempt` grows with every deployment of this child, on whichever stub: a stub obeys the
    highest (epoch of the table, attempt) that it has heard. `generation`: of the description that it was last brought
    to. `index`: its place in the enumeration, which is the order of rollouts. `want`: "passive" when an order
    deactivated it, "configured" or "non-existent" when an order shut it down or uninstalled it; the next rollout
    starts those, and leaves passive ones passive."""

    name: StubName
    index: Number
    stub: StubRef
    attempt: Number = 0
    env: EnvState = "non-existent"
    life: LifeState = "non-existent"
    outcome: Outcome = "pending"
    reason: Reason = ""
    prints: Prints = Prints()
    generation: Label = ""
    initiator: bool = False
    """It deploys children itself, so there is a table of its own."""
    want: LifeState = "active"
    steps: Annotated[tuple[tuple[Number, Number], ...], msgspec.Meta(max_length=MAX_STEPS)] = ()
    """How it was deployed last: (step of section 3, milliseconds) for what its boot stub did (2 to 6), and (7, from the
    call to the report of its success)."""
    left: Annotated[tuple[StubRef, ...], msgspec.Meta(max_length=MAX_LEFT)] = ()
    """Boot stubs from which it was placed elsewhere when they did not answer: an older one may still be there."""
    tried: Label = ""
    """The generation for which it was refused or failed."""


class Table(msgspec.Struct, frozen=True):
    """Of the initiator at `path`. `epoch` is not in here: it is the zxid of the transaction that claimed the table."""

    path: Path
    guid: Guid
    """Of the incarnation that owns it."""
    address: Address
    rollout: Label
    children: Annotated[tuple[Child, ...], msgspec.Meta(max_length=MAX_CHILDREN)] = ()
    repository: Url = ""
    """From which its children were deployed last."""


class TopRecord(msgspec.Struct, frozen=True):
    """In the directory, while a top initiator works: one at a time. `address`: where questions to the tree go.
    (`pid`, `started`): its process, by the ticks since boot at which it started. `doing`: for people. `stays`: it looks
    after the roots, and makes way for whoever wants something."""

    guid: Guid
    address: Address
    host: Line
    pid: Number
    started: Number
    doing: Line
    stays: bool = False
