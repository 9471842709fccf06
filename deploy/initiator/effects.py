"""What an initiator asks of its host (effects), and what the host tells it (inputs).

The whole loop of an initiator, in the real world and in tests alike:

    effects = initiator.handle(now, Activate())
    forever:
        perform `effects`, in order
        wait for an input, or for initiator.next_deadline()
        effects = initiator.handle(now, input)      # or initiator.tick(now)

`now` is seconds of a clock that only grows. Performing an effect never fails towards the initiator: what went wrong
comes back as an input.

The table. `ClaimTable` is answered by `Claimed`: the host reads the table of this initiator's path, writes it again
with the guid and the address of this incarnation under the version that it read, and tells what stood in it and the
zxid of its own write: the epoch. From then on the host knows the version; `SaveTable` and `DropTable` are written
under it, one at a time (the initiator never has two under way), and answered by `Saved`. When somebody else has
written meanwhile, the answer is `TreeFailed("fenced")`, after which the initiator does nothing for ever. A write
whose outcome is not known (the session was lost) is the host's to find out: if the table is still its own, it writes
again. Anything else that goes wrong is another `TreeFailed`, after which the initiator asks again by itself.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from deploy.hosting import InitiatorCharge
from deploy.messages import AnyDeployMessage, Counts, Entry, Problem, Rollout
from deploy.records import StubName, StubRef, Table
from deploy.states import Verb

# --- effects ---------------------------------------------------------------------------------------------------------


class Send(msgspec.Struct, frozen=True):
    """`to`: an address. A send is never known to have arrived."""

    to: str
    message: AnyDeployMessage


class ClaimTable(msgspec.Struct, frozen=True):
    """Ends in `Claimed` or `TreeFailed`."""


class SaveTable(msgspec.Struct, frozen=True):
    """Ends in `Saved` or `TreeFailed`."""

    table: Table


class DropTable(msgspec.Struct, frozen=True):
    """All children are gone, and this initiator is about to go: remove its znode. Ends in `Saved` or `TreeFailed`."""


class FindStubs(msgspec.Struct, frozen=True):
    """These boot stubs do not answer: look in the directory where they are now. Ends in `StubsKnown`, or in nothing."""

    names: tuple[StubName, ...]


class Note(msgspec.Struct, frozen=True):
    """For the log."""

    level: Literal["info", "warning", "error"]
    text: str


class Progress(msgspec.Struct, frozen=True):
    """The top only: how far `rollout` is, at most every `report_s`."""

    rollout: str
    seq: int
    counts: Counts
    problems: tuple[Problem, ...]


class Settled(msgspec.Struct, frozen=True):
    """The top only: everything up to `until` of this (rollout, seq) has its final outcome. Comes again when something
    changed and settled again, as after a restart."""

    rollout: str
    seq: int
    counts: Counts
    problems: tuple[Problem, ...]


class Gathered(msgspec.Struct, frozen=True):
    """The top only: part of what came of an `Order`; the last one says so."""

    call: str
    entries: tuple[Entry, ...]
    last: bool


Effect = Send | ClaimTable | SaveTable | DropTable | FindStubs | Note | Progress | Settled | Gathered

# --- inputs ----------------------------------------------------------------------------------------------------------


class Activate(msgspec.Struct, frozen=True):
    """Begin, or go on."""


class Deactivate(msgspec.Struct, frozen=True):
    """Begin nothing new. What is under way is finished; reports and commands to the subtree go on. It may be the first
    input, instead of `Activate`."""


class Charged(msgspec.Struct, frozen=True):
    """The parent, the charge or the role is another now."""

    charge: InitiatorCharge


class Claimed(msgspec.Struct, frozen=True):
    """`table`: what stood there; None: nothing. `epoch`: the zxid of the claim."""

    table: Table | None
    epoch: int


class Saved(msgspec.Struct, frozen=True):
    """The last `SaveTable` or `DropTable` is in ZooKeeper."""


class TreeFailed(msgspec.Struct, frozen=True):
    """The last `ClaimTable`, `SaveTable` or `DropTable` was not done. "fenced": the table is another's now."""

    reason: str


class StubsKnown(msgspec.Struct, frozen=True):
    """Where boot stubs are, from the directory. `gone`: it has none of these names any more, as an operator took them
    out; what was there is given up. What is in neither stays as it was."""

    stubs: tuple[StubRef, ...]
    gone: tuple[StubName, ...] = ()


class Received(msgspec.Struct, frozen=True):
    sender: str
    message: AnyDeployMessage


class Roll(msgspec.Struct, frozen=True):
    """The top only: bring this about. The initiator fills in `epoch`; `seq` must grow while the initiator lives."""

    rollout: Rollout


class Order(msgspec.Struct, frozen=True):
    """The top only: `what` for all of the tree that matches; comes back as `Gathered`, the last one within `wait_s`."""

    call: str
    pattern: str
    what: Verb | Literal["status"]
    wait_s: float


Input = Activate | Deactivate | Charged | Claimed | Saved | TreeFailed | StubsKnown | Received | Roll | Order
