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

from dataclasses import dataclass
from typing import Literal

from deploy.hosting import InitiatorCharge
from deploy.messages import AnyDeployMessage, Counts, Entry, Problem, Rollout
from deploy.records import StubName, StubRef, Table
from deploy.states import Verb

# --- effects ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Send:
    """`to`: an address. A send is never known to have arrived."""

    to: str
    message: AnyDeployMessage


@dataclass(frozen=True, slots=True)
class ClaimTable:
    """Ends in `Claimed` or `TreeFailed`."""


@dataclass(frozen=True, slots=True)
class SaveTable:
    """Ends in `Saved` or `TreeFailed`."""

    table: Table


@dataclass(frozen=True, slots=True)
class DropTable:
    """All children are gone, and this initiator is about to go: remove its znode. Ends in `Saved` or `TreeFailed`."""


@dataclass(frozen=True, slots=True)
class FindStubs:
    """These boot stubs do not answer: look in the directory where they are now. Ends in `StubsKnown`, or in nothing."""

    names: tuple[StubName, ...]


@dataclass(frozen=True, slots=True)
class Note:
    """For the log."""

    level: Literal["info", "warning", "error"]
    text: str


@dataclass(frozen=True, slots=True)
class Progress:
    """The top only: how far `rollout` is, at most every `report_s`."""

    rollout: str
    seq: int
    counts: Counts
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class Settled:
    """The top only: everything up to `until` of this (rollout, seq) has its final outcome. Comes again when something
    changed and settled again, as after a restart."""

    rollout: str
    seq: int
    counts: Counts
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class Gathered:
    """The top only: part of what came of an `Order`; the last one says so."""

    call: str
    entries: tuple[Entry, ...]
    last: bool


Effect = Send | ClaimTable | SaveTable | DropTable | FindStubs | Note | Progress | Settled | Gathered

# --- inputs ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Activate:
    """Begin, or go on."""


@dataclass(frozen=True, slots=True)
class Deactivate:
    """Begin nothing new. What is under way is finished; reports and commands to the subtree go on. It may be the first
    input, instead of `Activate`."""


@dataclass(frozen=True, slots=True)
class Charged:
    """The parent, the charge or the role is another now."""

    charge: InitiatorCharge


@dataclass(frozen=True, slots=True)
class Claimed:
    """`table`: what stood there; None: nothing. `epoch`: the zxid of the claim."""

    table: Table | None
    epoch: int


@dataclass(frozen=True, slots=True)
class Saved:
    """The last `SaveTable` or `DropTable` is in ZooKeeper."""


@dataclass(frozen=True, slots=True)
class TreeFailed:
    """The last `ClaimTable`, `SaveTable` or `DropTable` was not done. "fenced": the table is another's now."""

    reason: str


@dataclass(frozen=True, slots=True)
class StubsKnown:
    """Where boot stubs are, from the directory. `gone`: it has none of these names any more, as an operator took them
    out; what was there is given up. What is in neither stays as it was."""

    stubs: tuple[StubRef, ...]
    gone: tuple[StubName, ...] = ()


@dataclass(frozen=True, slots=True)
class Received:
    sender: str
    message: AnyDeployMessage


@dataclass(frozen=True, slots=True)
class Roll:
    """The top only: bring this about. The initiator fills in `epoch`; `seq` must grow while the initiator lives."""

    rollout: Rollout


@dataclass(frozen=True, slots=True)
class Order:
    """The top only: `what` for all of the tree that matches; comes back as `Gathered`, the last one within `wait_s`."""

    call: str
    pattern: str
    what: Verb | Literal["status"]
    wait_s: float


Input = Activate | Deactivate | Charged | Claimed | Saved | TreeFailed | StubsKnown | Received | Roll | Order
