"""What a rollout means for the children of one initiator: who there should be, where, and whom it reaches.

The enumeration is made anew with every rollout that is newer than the last one, from the role and the domain as they
are then. Children that are described and reached, but have no row, get one: where they will be (which is saved before
anything is sent). Rows that are not described any more lose their place; they are removed when the rollout reaches
everything, and prunes. An initiator whose children cannot be is left as it is, and says so.
"""

from __future__ import annotations

from deploy.configuration import InitiatorRole
from deploy.initiator.bringing import ORPHANS, PASSIVE
from deploy.initiator.house import House
from deploy.initiator.keeping import Keeper
from deploy.initiator.kid import Kid
from deploy.initiator.placement import BadEnumeration, Place, children_of
from deploy.initiator.steps import RUNS
from deploy.initiator.stubs import Stubs
from deploy.initiator.watermark import ALL, frontier
from deploy.messages import Rollout
from deploy.records import Child, StubRef, Table


class Covering:
    def __init__(self, house: House, stubs: Stubs, keeper: Keeper) -> None:
        self._house = house
        self._stubs = stubs
        self._keeper = keeper
        self._places: tuple[Place, ...] = ()
        self._source: tuple[InitiatorRole, tuple[StubRef, ...], tuple[StubRef, ...]] | None = None
        """Of `_places`."""
        self._begun = ""
        """The rollout that an earlier incarnation had begun: for children that it reached, it is no new one."""

    def load(self, now: float, table: Table) -> list[str]:
        """Rows that another incarnation left; returns the names of their boot stubs."""
        house = self._house
        self._begun, house.last_repository = table.rollout, table.repository
        for row in table.children:
            kid = _from_row(house.path, row)
            house.kids[row.name] = kid
            house.attempts = max(house.attempts, row.attempt)
            self._stubs.house_kid(kid, row.stub)
            for ref in row.left:
                self._stubs.leave_kid(kid, ref)
        return list(dict.fromkeys(ref.name for row in table.children for ref in (row.stub, *row.left)))

    def cover(self, now: float, last: Rollout | None) -> list[Kid]:
        """The rollout is another one than `last`: returns the children for whom that means something."""
        house, rollout = self._house, self._house.rollout
        assert rollout is not None
        fresh = last is None or (last.id, last.epoch) != (rollout.id, rollout.epoch)
        self._enumerate(rollout)
        reached = self._reached(rollout)
        found = []
        for place in self._places if not rollout.remove_all else ():
            kid = house.kids.get(place.name)
            covered = place.index <= reached
            if kid is None and not covered:
                continue
            if kid is None:
                kid = self._new(now, place)
            elif kid.index != place.index:
                kid.row, kid.index = None, place.index
            kid.place = place
            if self._reach(kid, covered, fresh, rollout):
                found.append(kid)
        everything = reached == len(self._places) and rollout.prune and not house.trouble
        house.prunes = rollout.remove_all or everything
        described = set() if rollout.remove_all else {place.name for place in self._places}
        for kid in house.kids.values():
            if kid.name not in described:
                if not house.trouble and not rollout.remove_all:
                    kid.place = None
                if self._reach(kid, house.prunes, fresh, rollout):
                    found.append(kid)
        self._begun = ""
        return found

    def _enumerate(self, rollout: Rollout) -> None:
        house = self._house
        charge = house.charge.charge
        source = (house.charge.role, charge.domain, charge.spare)
        if rollout.remove_all:
            self._source, house.trouble = None, ""
            return
        if self._source is not None and all(one is other for one, other in zip(source, self._source, strict=True)):
            return
        self._source, house.trouble = source, ""
        for kid in house.kids.values():
            kid.subtree.has_charge = False  # the one that it was deployed with may be another one by now
        try:
            self._places = children_of(house.path, *source)
        except BadEnumeration as error:
            self._places = ()
            house.trouble = str(error)
            house.warn(house.trouble)

    def _reached(self, rollout: Rollout) -> int:
        """The index of the last child that is reached: -1 for none, the number of children for all."""
        name = frontier(self._house.path, rollout.until)
        if name is ALL or not self._places:
            return len(self._places)
        at = next((place.index for place in self._places if place.name == name), -1)
        if name and at < 0:
            self._house.warn(f"the rollout's watermark {rollout.until} is below {name}, which is no child of this one")
        return at

    def _reach(self, kid: Kid, covered: bool, fresh: bool, rollout: Rollout) -> bool:
        """True when there is something to consider."""
        begins = covered and (fresh or not kid.covered)
        kid.covered = covered
        if begins:
            self._begin(kid, rollout, rollout.id != self._begun)
        self._house.recount(kid)
        return begins

    def _begin(self, kid: Kid, rollout: Rollout, new: bool) -> None:
        going = kid.place is None or rollout.remove_all
        kid.tries = kid.commands = 0
        kid.crashes, kid.rework, kid.checked, kid.leaf_next = (), "", False, False
        kid.not_before = 0.0
        if going:
            kid.given_up, kid.outcome, kid.reason, kid.generation = False, "pending", "", ""
            return
        if kid.want not in RUNS and new:
            kid.want = "active"
        another = rollout.generation != kid.tried or kid.outcome == "unreachable"
        if kid.given_up and ((rollout.retry and new) or another):
            kid.given_up, kid.outcome, kid.reason, kid.generation = False, "pending", "", ""
        elif kid.outcome == "done" and kid.generation != rollout.generation:
            kid.outcome = "pending"

    def _new(self, now: float, place: Place) -> Kid:
        house = self._house
        kid = Kid(place.name, place.path, place.index, place, place.stub.name, house.next_attempt())
        house.kids[place.name] = kid
        self._stubs.house_kid(kid, place.stub)
        kid.intent = self._keeper.touch(now, kid, urgent=True)
        return kid


def _from_row(path: str, row: Child) -> Kid:
    """What is known of a child by its row. That it has a place is found out by the next rollout; what became of it
    since the row was written, by the adoption of its boot stub."""
    return Kid(
        row.name,
        f"{path}/{row.name}",
        row.index,
        None,
        row.stub.name,
        row.attempt,
        row.env,
        row.life,
        row.want,
        "pending" if row.outcome == "done" else row.outcome,
        row.reason,
        row.prints,
        row.generation,
        row.initiator,
        row.steps,
        row.left,
        row.tried,
        sent=True,
        given_up=row.outcome in ("refused", "failed") and row.reason != PASSIVE,
        unsure=True,
        orphans=row.reason == ORPHANS,
    )
