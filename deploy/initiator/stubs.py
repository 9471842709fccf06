"""The boot stubs of an initiator's children: where they are, and whether they live.

A boot stub is heard by its beats and by every answer. After `beats_missed` beats of silence it is *suspect*: it is
asked (AdoptCall, which also tells it who we are), again and again, and after `stub_lost_s` more it is *lost*: its
calls are given up, and whoever owns the children decides about them. A lost one is asked now and then for as long as
it has children, and the host looks in the directory whether it has another address.

Before anything is done on a boot stub of which a table of an earlier incarnation says that children are there, it is
*adopted*: what it says in a whole beat is believed from then on. One that was lost, or that was started anew, is
adopted again.

A lease needs silence: a boot stub whose children may be placed elsewhere when their lease is over must hear nothing
from us meanwhile, as a ping that arrives would renew it. Such a lost one is `quiet` until they are placed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from deploy.initiator.effects import FindStubs
from deploy.initiator.house import House
from deploy.initiator.kid import Kid
from deploy.messages import AdoptCall, StubBeat, StubPing
from deploy.records import MAX_LEFT, StubRef

ASKED_IN_VAIN = 2
"""Then the directory is asked whether it is somewhere else now."""
LEASE_PARTS = 3
"""A lease is renewed this often while it lasts."""


@dataclass(slots=True, eq=False)
class Stub:
    ref: StubRef
    state: Literal["new", "adopting", "ok", "suspect", "lost"] = "new"
    heard_at: float = 0.0
    guid: str = ""
    kids: dict[str, Kid] = field(default_factory=dict)
    left: dict[str, Kid] = field(default_factory=dict)
    """Children that were placed elsewhere since, of whom an older deployment may still be there."""
    gone: bool = False
    """Somebody took it out of the directory."""
    quiet: bool = False
    asked: int = 0
    leased: bool = False


class Stubs:
    """`on_lost(now, stub)`: decide about its children. `on_back(now, stub)`: it is heard again, and will be adopted."""

    def __init__(
        self, house: House, on_lost: Callable[[float, str], None], on_back: Callable[[float, str], None]
    ) -> None:
        self._house = house
        self._on_lost, self._on_back = on_lost, on_back
        self._stubs: dict[str, Stub] = {}
        for ref in (*house.charge.charge.domain, *house.charge.charge.spare):
            self._stubs.setdefault(ref.name, Stub(ref))

    # --- where they are ----------------------------------------------------------------------------------------------

    def where(self, stub: str) -> StubRef:
        return self._stubs[stub].ref

    def get(self, stub: str) -> Stub | None:
        return self._stubs.get(stub)

    def learn(self, now: float, refs: tuple[StubRef, ...]) -> None:
        """From the directory, or from the parent's charge."""
        for ref in refs:
            known = self._stubs.get(ref.name)
            if known is None:
                self._stubs[ref.name] = Stub(ref)
            elif known.ref != ref and (known.state != "ok" or known.ref.address == ref.address):
                known.ref, known.gone = ref, False  # one that answers knows best itself where it is
                self._rows_changed(known)
                if known.state not in ("new", "ok"):
                    known.asked = 0
                    self._ask(now, known)

    def house_kid(self, kid: Kid, ref: StubRef) -> None:
        """The child is, or will be, on this boot stub."""
        old = self._stubs.get(kid.stub)
        if old is not None:
            old.kids.pop(kid.name, None)
        stub = self._stubs.setdefault(ref.name, Stub(ref))
        if not stub.kids and not stub.left and stub.state != "adopting":
            stub.state = "new"  # nobody has listened to it since the last one left: try
        self.is_clean(kid, ref.name)
        kid.stub = ref.name
        stub.kids[kid.name] = kid

    def drop_kid(self, kid: Kid) -> None:
        self._stubs[kid.stub].kids.pop(kid.name, None)
        for ref in kid.left:
            self._stubs[ref.name].left.pop(kid.name, None)

    def leave_kid(self, kid: Kid, ref: StubRef) -> None:
        """An older deployment of it may still be on this boot stub."""
        self._stubs.setdefault(ref.name, Stub(ref)).left[kid.name] = kid
        others = tuple(one for one in kid.left if one.name != ref.name)
        if len(others) == MAX_LEFT:
            self._stubs[others[0].name].left.pop(kid.name, None)
        kid.left, kid.row = (*others, ref)[-MAX_LEFT:], None

    def is_clean(self, kid: Kid, stub: str) -> None:
        """Nothing of it is there any more."""
        known = self._stubs.get(stub)
        if known is not None and known.left.pop(kid.name, None) is not None:
            kid.left, kid.row = tuple(one for one in kid.left if one.name != stub), None

    def load(self, stub: str) -> int:
        """How many children are there."""
        known = self._stubs.get(stub)
        return len(known.kids) if known else 0

    # --- whether they live -------------------------------------------------------------------------------------------

    def adopt(self, now: float, stub: str) -> None:
        """Its children came from a table: ask what is there."""
        known = self._stubs[stub]
        known.state, known.heard_at, known.asked = "adopting", now, 0
        self._ask(now, known)
        self._keep_lease(now, known)

    def _back(self, now: float, known: Stub) -> None:
        if known.state == "lost":
            self._house.info(f"boot stub {known.ref.name} is back")
            known.quiet = known.gone = False
            self._on_back(now, known.ref.name)

    def contacted(self, now: float, stub: str) -> None:
        """A command is being sent there: from now on its silence means something."""
        known = self._stubs[stub]
        if known.state == "new":
            known.state, known.heard_at = "ok", now
        self._house.agenda.by(("stub", stub), now + self._house.settings.suspect_s)
        self._keep_lease(now, known)

    def _keep_lease(self, now: float, known: Stub) -> None:
        lease_s = self._house.charge.role.lease_s
        if lease_s and not known.leased:
            known.leased = True
            self._house.agenda.set(("lease", known.ref.name), now + lease_s / LEASE_PARTS)

    def is_ready(self, stub: str) -> bool:
        """Commands may be sent there."""
        known = self._stubs.get(stub)
        return known is not None and known.state in ("new", "ok", "suspect")

    def is_unheard(self, stub: str) -> bool:
        """It is being adopted: what is there now is not known."""
        known = self._stubs.get(stub)
        return known is not None and known.state == "adopting"

    def is_lost(self, stub: str) -> bool:
        known = self._stubs.get(stub)
        return known is not None and known.state == "lost"

    def lost(self) -> list[Stub]:
        return [known for known in self._stubs.values() if known.state == "lost"]

    def is_gone(self, stub: str) -> bool:
        """It is lost, and the directory does not know it any more."""
        known = self._stubs.get(stub)
        return known is not None and known.gone and known.state == "lost"

    def on_beat(self, now: float, beat: StubBeat) -> Literal["doubtful", "news", "adopted"]:
        """Whether what it says of our children is to be believed; adopted: from now on, so go on with them."""
        known = self._stubs.setdefault(beat.stub.name, Stub(beat.stub))
        was = known.state
        if known.ref != beat.stub:
            known.ref = beat.stub
            self._rows_changed(known)
        new_guid = bool(known.guid) and known.guid != beat.guid
        known.guid = beat.guid
        self._back(now, known)
        if was in ("new", "ok", "suspect") and not new_guid:
            self.heard(now, beat.stub.name)
            return "news"
        if beat.whole and self._is_mine(known, beat):
            known.state = "ok"
            self.heard(now, beat.stub.name)
            return "adopted"
        if was == "adopting":
            self.heard(now, beat.stub.name)
        else:  # it is back, or was started anew: what it has is what it says in a whole beat
            self.adopt(now, beat.stub.name)
        return "doubtful"

    def heard(self, now: float, stub: str) -> None:
        known = self._stubs.get(stub)
        if known is None:
            return
        known.heard_at, known.asked = now, 0
        if known.state == "lost":
            self._back(now, known)
            self.adopt(now, stub)
        elif known.state == "suspect":
            known.state = "ok"
        if known.kids or known.left:
            self._house.agenda.by(("stub", stub), now + self._house.settings.suspect_s)

    def on_time(self, now: float, stub: str) -> None:
        known, settings = self._stubs[stub], self._house.settings
        lost_at, suspect_at = known.heard_at + settings.lost_s, known.heard_at + settings.suspect_s
        if not (known.kids or known.left) or known.quiet or known.state == "new":
            return
        if known.state == "lost" or (known.state == "adopting" and now < lost_at):
            self._ask(now, known)
        elif now >= lost_at:
            known.state = "lost"
            silent_s = now - known.heard_at
            self._house.warn(f"boot stub {stub} at {known.ref.address} has not answered for {silent_s:.0f} s")
            self._on_lost(now, stub)
            self._ask(now, known)
        elif now >= suspect_at:
            known.state = "suspect"
            self._ask(now, known)
        else:
            self._house.agenda.set(("stub", stub), suspect_at)

    def on_lease(self, now: float, stub: str) -> None:
        known = self._stubs[stub]
        lease_s = self._house.charge.role.lease_s
        if not lease_s or not known.kids:
            known.leased = False
            return
        if not known.quiet and known.state != "lost":
            self._house.send(known.ref.address, StubPing(self._house.call_id(), self._house.me))
        self._house.agenda.set(("lease", stub), now + lease_s / LEASE_PARTS)

    def speak(self, now: float, stub: str) -> None:
        """The silence for the lease is over."""
        known = self._stubs[stub]
        if known.quiet:
            known.quiet = False
            if known.state == "lost" and (known.kids or known.left):
                self._ask(now, known)

    def _ask(self, now: float, known: Stub) -> None:
        """Ask a boot stub that is not heard, and see to it that it is asked again."""
        settings = self._house.settings
        if known.quiet:
            return
        wait_s = min(settings.call_repeat_s * 2**known.asked, settings.call_repeat_max_s)
        if known.state == "lost":
            wait_s = settings.lost_ping_s
        if known.state == "lost" or known.asked == ASKED_IN_VAIN:
            self._house.do(FindStubs((known.ref.name,)))
        known.asked = min(known.asked + 1, 10)
        paths = tuple(kid.path for kid in (*known.kids.values(), *known.left.values()))
        call = AdoptCall(self._house.call_id(), self._house.me, self._house.epoch, paths)
        self._house.send(known.ref.address, call)
        self._house.agenda.set(("stub", known.ref.name), now + wait_s)

    def _is_mine(self, known: Stub, beat: StubBeat) -> bool:
        """A whole beat that was under way before it was adopted says nothing of our epoch."""
        at = {kid.path for kid in (*known.kids.values(), *known.left.values())}
        return all(one.epoch >= self._house.epoch for one in beat.managents if one.path in at)

    @staticmethod
    def _rows_changed(known: Stub) -> None:
        for kid in known.kids.values():
            kid.row = None
