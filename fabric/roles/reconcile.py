"""`reconcile` of one deployment: its desired state against the plan in its record, and what to do about the difference.

Creating, scaling, deleting, healing after a dead node, emptying a node, taking over from a dead coordinator are one
thing:

        reconcile: desired state against the plan in the record
          |- gone ................ stop everything -> close "deleted"
          |- ordinals too many ... write the plan without them -> stop them -> reconcile
          |- ordinals missing .... reserve (reserving) -> write the plan -> confirm
          '- all in the plan ..... confirm (starting)
                                     |- all run ........... empty nodes that are drained (below) -> close "running"
                                     |- some must move .... write the plan without them -> stop them where they were
                                     |                      (or learn that the node is not there) -> reconcile
                                     '- none can start .... stop everything -> close "failed"

Order is what makes it safe: the plan is in ZooKeeper **before** anything is confirmed, and ordinals leave the plan
before they are stopped; so whoever takes over reads in the record what may be running where. A user's change that comes
in the middle is seen when it is submitted (`look`), or at the latest as a failed write; the coordinator adopts the new
record and reconciles again, under the same epoch.

Emptying a node (`evacuation`): its ordinals get places elsewhere, and in the same write of the record become `leaving`
at the old one; when they run elsewhere they are stopped there. A deployment that is `exclusive` has them stopped first,
once it is known that there is room. What finds no room stays, until the drain's deadline.

A scale-up that cannot be placed leaves the deployment as it was, and says why. An ordinal that was lost and finds no
place is `lacking`: the deployment runs on without it, and the patrol tries again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Protocol

from fabric.ordinals import parse_ordinals
from fabric.records import Deployment, Share, State
from fabric.roles import plans
from fabric.roles.charge import Charge
from fabric.roles.evacuation import Evacuation
from fabric.roles.outbox import Outbox
from fabric.roles.plans import MAX_REASONS, Place, by_place, places_of
from fabric.roles.reserving import Reservations, Reserving, cancel
from fabric.roles.starting import Starting, StartResult
from fabric.roles.stopping import Stopping

MAX_MOVES = 3
"""How often ordinals of one deployment are placed elsewhere before it counts as failed."""
MAX_RENEWALS = 8
"""How often a coordinator claims anew to be able to use nodes that registered after its claim."""


class Close(Protocol):
    def __call__(
        self,
        now: float,
        state: State,
        reasons: tuple[str, ...],
        plan: tuple[Share, ...] | None = None,
        count: int | None = None,
        left: Collection[Place] = (),
    ) -> None:
        """Write the end. `plan`, `count`: None leaves them as they are in the record. `left`: see `plans.settled`."""


class Reconcile:
    """`phase` is what waits for answers and time now; `close` is called when the deployment is at rest."""

    def __init__(self, charge: Charge, out: Outbox, close: Close) -> None:
        self._charge = charge
        self._keeper = charge.keeper
        self._settings = charge.settings
        self._out = out
        self._close = close
        self._exclude: set[str] = set()
        self._evacuation = Evacuation(charge.census)
        self._moves = 0
        self._renewals = 0
        self._enough = False
        """No more ordinals are placed elsewhere: what is lost stays lacking."""
        self._reasons: tuple[str, ...] = ()
        """Why ordinals had to move, found no place, or could not leave: each once."""
        self._unplanned: set[Place] = set()
        self._stopped = False
        """What the record has as stopping was asked to stop, and has but for what is left."""
        self._left: set[Place] = set()
        """Who did not say that what was to leave, or to stop, there has."""
        self._blocked: set[int] = set()
        """Ordinals that may still run there, and so are placed nowhere else."""
        self._patient = False
        """They were waited for as long as can be."""
        self.phase: Reserving | Starting | Stopping | None = None

    def changed(self, now: float) -> None:
        """A user changed the record while this coordinator worked: what was reserved for the old wish goes back."""
        if isinstance(self.phase, Reserving):
            self._unplanned |= self.phase.touched
        self.phase = None
        cancel(self._charge, now, self._unplanned)
        self._unplanned = set()
        # What was tried in vain was tried for the old wish.
        self._moves = self._renewals = 0
        self._enough = self._patient = False
        self._exclude.clear()
        self._evacuation.unmovable.clear()
        self._reasons = ()
        self.begin(now)

    def begin(self, now: float) -> None:
        """Compare, and act on the first difference; called again after each."""
        record = self._keeper.record
        where, leaving = places_of(record.plan), self._evacuation.leaving(record)
        if record.gone:
            self._stop(now, plans.whole(record), self._settings.stop_deadline_s, self._deleted)
            return
        if record.stopping and not self._stopped:
            # They may run there until the node says otherwise, so they are placed nowhere else before it does, or is
            # gone. Who does not answer at once is come back to: the others must not wait for it.
            stops = plans.stops_of(record.stopping)
            first = {place: some for place, some in stops.items() if place not in self._left}
            self._see_stopped(now, first, 2 * self._settings.command_wait_s)
            return
        surplus = {ordinal for ordinal in (*where, *leaving) if ordinal >= record.count}
        if surplus:
            self._shrink(now, surplus)
            return
        blocked = {ordinal for ordinal in self._blocked if ordinal < record.count}
        if blocked and not self._healing:
            if self._patient:
                self._give_up(now, "nodes that must stop what they run did not answer", _left_behind(self._left))
            else:
                self._wait_for_left(now, self._settings.start_deadline_s)
            return
        missing = tuple(ordinal for ordinal in range(record.count) if ordinal not in where and ordinal not in blocked)
        if not missing or self._enough:
            self._confirm(now)
            return
        least = record.min_count if not self._scaling else record.count if record.count > record.had else 0
        self._reserve(now, missing, max(0, least - len(where)), self._reserved)

    def _reserve(
        self, now: float, ordinals: tuple[int, ...], need: int, then: Callable[[float, Reservations], None]
    ) -> None:
        stay = {o: place for o, place in places_of(self._keeper.record.plan).items() if o not in ordinals}
        used = {place: len(some) for place, some in by_place(stay).items()}
        exclude = frozenset(self._exclude) | self._charge.census.draining
        phase = Reserving(self._charge, ordinals, need, used, exclude, then)
        self.phase = phase
        phase.begin(now)

    @property
    def _scaling(self) -> bool:
        """Something of it was settled before: a change that cannot be made leaves that as it was."""
        return self._keeper.record.had > 0

    @property
    def _healing(self) -> bool:
        """All that is wanted ran before: what can be had of it is better than nothing."""
        return 0 < self._keeper.record.count <= self._keeper.record.had

    def _reserved(self, now: float, got: Reservations) -> None:
        record = self._keeper.record
        if self._renewed(now, got):
            return
        if got.reasons:
            self._because(*got.reasons)
            got = Reservations(got.places, self._reasons)
        where = places_of(record.plan)
        # What was about to leave a node and lost its other place runs there still: it stays.
        back, stay = self._evacuation.kept_back(record, {**where, **got.places})
        if got.places or (back and self._healing):
            self._unplanned = set(got.places.values())
            then = self._found({**where, **back}) if got.places else self._confirm
            self._write_plan(now, {**where, **back, **got.places}, stay, then)
        elif self._healing:
            self._confirm(now)
        elif self._scaling:
            self._revert(now, got.reasons)
        elif len(where) < max(1, record.min_count):
            what = f"{record.count - len(where)} of {record.count} instances found no place"
            self._fail(now, what, got.reasons)
        else:
            self._confirm(now)

    def _renewed(self, now: float, got: Reservations) -> bool:
        """Room was missing that nodes have which registered after our claim: claim anew, and begin again."""
        if not got.newcomers or self._renewals >= MAX_RENEWALS:
            return False
        self._renewals += 1
        self.phase = None
        self._keeper.renew(now)
        return True

    def _write_plan(
        self,
        now: float,
        where: dict[int, Place],
        leaving: dict[int, Place],
        then: Callable[[float], None],
        stop: Mapping[Place, tuple[int, ...]] | None = None,
    ) -> None:
        """Into the record, under the epoch; the next step's commands are for this plan."""
        charge, record = self._charge, self._keeper.record
        fence = (charge.epoch, charge.next_step())
        known = plans.stops_of(record.stopping)
        still = {place: some for place, some in known.items() if not self._stopped or place in self._left}
        gone = plans.stops_of(record.leaving) if self._evacuation.let_go else {}
        silent = {place: some for place, some in gone.items() if place in self._left}
        stopping = plans.merged(stop or {}, still, silent)
        planned = plans.replanned(record, where, leaving, stopping, fence, self._out.wall_ms)
        self.phase = None
        self._stopped = self._stopped and not stop
        self._evacuation.let_go = False

        def written(at: float) -> None:
            self._unplanned = set()
            self._charge.recorder.span(6, now, at, f"plan for {len(planned.plan)} nodes written before anything starts")
            then(at)

        self._keeper.write(now, planned, written)

    def _found(self, kept: dict[int, Place]) -> Callable[[float], None]:
        """To go on with when the plan is written that a search for places led to; `kept` is not from that search."""

        def written(now: float) -> None:
            self._charge.recorder.placings.planned(plans.plan_of(kept), self._keeper.record.plan)
            self._confirm(now)

        return written

    def _confirm(self, now: float) -> None:
        """All of the plan: new shares start, old ones are asked how they are."""
        self._bring_up(now, self._started)

    def _bring_up(self, now: float, done: Callable[[float, StartResult], None]) -> None:
        record = self._keeper.record
        step = self._charge.step
        if record.epoch != self._charge.epoch:
            step = self._charge.next_step()
        old = frozenset(range(record.had)) - frozenset(parse_ordinals(record.moved))
        phase = Starting(self._charge, record.plan, old, step, done)
        self.phase = phase
        phase.begin(now)

    def _started(self, now: float, result: StartResult) -> None:
        record, moves = self._keeper.record, result.moves
        if result.fatal and not self._healing:
            self._give_up(now, result.fatal, tuple(sorted(set(moves.values()))))
            return
        if result.fatal:
            self._enough = True
            fresh = (set(parse_ordinals(record.moved)) & set(places_of(record.plan))) - result.running
            moves = {**dict.fromkeys(sorted(fresh), result.fatal), **moves}
        if not moves:
            self._all_run(now)
            return
        self._moves += 1
        reasons = tuple(sorted(set(moves.values())))
        if self._moves > MAX_MOVES and not self._healing:
            self._give_up(now, f"placed elsewhere {MAX_MOVES} times in vain", reasons)
            return
        self._enough = self._enough or self._moves > MAX_MOVES
        self._because(*reasons)
        where = places_of(record.plan)
        self._exclude |= {where[ordinal][0] for ordinal in moves}
        why = "; ".join(reasons)[:300]
        self._out.note("warning", f"{self._keeper.deployment}: placing {len(moves)} elsewhere: {why}")
        self._charge.recorder.round(now, len(moves), 0, (), "; ".join(reasons))
        self._shrink(now, set(moves))

    # --- nodes that are to be emptied --------------------------------------------------------------------------------

    def _all_run(self, now: float) -> None:
        """Everything of the plan runs: see to what is to leave its node, then close."""
        record = self._keeper.record
        leaving = self._evacuation.leaving(record)
        if leaving:
            self._stop(now, by_place(leaving), self._settings.stop_deadline_s, self._have_left)
            return
        movable, stuck, overdue = self._evacuation.of(record, self._out.wall_ms)
        if movable:
            self._reserve(now, movable, 1, lambda at, got: self._evacuate(at, movable, got))
        elif overdue:
            what = f"{len(overdue)} instances found no other place before their node's drain was over"
            self._because(what)
            self._shrink(now, overdue)
        elif self._blocked and not self._patient and min(self._blocked) < record.count:
            self._wait_for_left(now, self._settings.stop_deadline_s)
        else:
            self._close(now, "running", self._short(record, len(stuck)), left=self._left)

    def _have_left(self, now: float, left: tuple[Place, ...]) -> None:
        record, vanished = self._keeper.record, self.phase.vanished if isinstance(self.phase, Stopping) else set()
        self._evacuation.let_go = True
        self._left |= set(left)
        self._because(*_left_behind(left))
        stops = {place: some for place, some in plans.stops_of(record.leaving).items() if place in vanished}
        if stops:
            # A node that comes back while the record has them as leaving there goes on running them, and is counted. So
            # the record is to be without them first; then that the node is not there means that it will find out.
            self._write_plan(now, places_of(record.plan), {}, self.begin, stops)
        else:
            self._all_run(now)

    def _evacuate(self, now: float, movable: tuple[int, ...], got: Reservations) -> None:
        record = self._keeper.record
        if self._renewed(now, got):
            return
        self._evacuation.unmovable |= set(movable) - set(got.places)
        self._because(*got.reasons)
        where = places_of(record.plan)
        if not got.places:
            self._all_run(now)
        elif record.exclusive:
            cancel(self._charge, now, set(got.places.values()))  # there is room: now stop, then place
            self._shrink(now, set(got.places))
        else:
            self._unplanned = set(got.places.values())
            leaving = {o: where[o] for o in got.places}
            self._write_plan(now, {**where, **got.places}, leaving, self._found(where))

    def _because(self, *reasons: str) -> None:
        self._reasons = tuple(dict.fromkeys((*self._reasons, *reasons)))[:MAX_REASONS]

    def _short(self, record: Deployment, stuck: int) -> tuple[str, ...]:
        if record.placed < record.count:
            return (f"placed {record.placed} of {record.count}", *self._reasons)
        if stuck:
            return (f"{stuck} instances can't leave a node that is to be emptied", *self._reasons)
        return ()

    def _shrink(self, now: float, ordinals: set[int]) -> None:
        """Take `ordinals` out of the plan, then stop them where they are, then go on."""
        change = plans.without(self._keeper.record, self._evacuation.leaving(self._keeper.record), ordinals)
        self._write_plan(now, change.where, change.leaving, self.begin, change.stop)

    def _see_stopped(self, now: float, targets: dict[Place, tuple[int, ...]], wait_s: float) -> None:
        """Stop these of the record's; who has not answered by then is left, and what may run there is blocked."""

        def done(at: float, left: tuple[Place, ...]) -> None:
            stops = plans.stops_of(self._keeper.record.stopping)
            self._left = (self._left - set(targets)) | set(left)
            self._blocked = {ordinal for place in self._left for ordinal in stops.get(place, ())}
            self._stopped = True
            self._because(*_left_behind(left))
            self.begin(at)

        self._stop(now, targets, wait_s, done)

    def _wait_for_left(self, now: float, wait_s: float) -> None:
        """There is nothing else to do."""
        self._patient = True
        stops = plans.stops_of(self._keeper.record.stopping)
        self._see_stopped(now, {place: stops[place] for place in self._left if place in stops}, wait_s)

    def _stop(
        self,
        now: float,
        targets: dict[Place, tuple[int, ...]],
        deadline_s: float,
        then: Callable[[float, tuple[Place, ...]], None],
    ) -> None:
        phase = Stopping(self._charge, targets, deadline_s, then)
        self.phase = phase
        phase.begin(now)

    # --- ends ----------------------------------------------------------------------------------------------------

    def _deleted(self, now: float, left: tuple[Place, ...]) -> None:
        self._close(now, "deleted", _left_behind(left), plan=())

    def _give_up(self, now: float, reason: str, reasons: tuple[str, ...]) -> None:
        """What was settled before stays; a deployment that never was fails whole."""
        if self._scaling:
            self._revert(now, (reason, *reasons))
        else:
            self._fail(now, reason, reasons)

    def _fail(self, now: float, reason: str, reasons: tuple[str, ...]) -> None:
        """Whatever was confirmed is stopped; only then the end is written."""

        def stopped(at: float, left: tuple[Place, ...]) -> None:
            self._close(at, "failed", (reason, *reasons, *_left_behind(left)), plan=(), left=left)

        self._stop(now, plans.whole(self._keeper.record), self._settings.stop_deadline_s, stopped)

    def _revert(self, now: float, reasons: tuple[str, ...]) -> None:
        """Back to the ordinals that were settled before: those beyond leave the plan, and are stopped."""
        record = self._keeper.record
        had = record.had
        if record.count > had:
            reasons = (f"scaling to {record.count} was not possible, still {had}", *reasons)
        change = plans.reverted(record, self._evacuation.leaving(record))
        if not change.stop and not record.leaving:
            self._settle_back(now, had, reasons)
            return

        def stopped(at: float, left: tuple[Place, ...]) -> None:
            self._left |= set(left)
            self._settle_back(at, had, (*reasons, *_left_behind(left)))

        def written(at: float) -> None:
            self._stop(at, change.stop, self._settings.stop_deadline_s, stopped)

        self._write_plan(now, change.where, change.leaving, written, change.stop)

    def _settle_back(self, now: float, had: int, reasons: tuple[str, ...]) -> None:
        """At rest again with what was settled before, once those of them run that were given another place since: they
        may not have been told yet. What does not come up is lacking."""
        record = self._keeper.record
        fresh = set(parse_ordinals(record.moved)) & set(places_of(record.plan))

        def close(at: float, left: tuple[Place, ...] = ()) -> None:
            self._close(at, "running", (*reasons, *_left_behind(left)), count=had, left=self._left | set(left))

        def brought_up(at: float, result: StartResult) -> None:
            failing = fresh - result.running
            if not failing:
                close(at)
                return
            change = plans.without(self._keeper.record, self._evacuation.leaving(self._keeper.record), failing)

            def written(later: float) -> None:
                self._stop(later, change.stop, self._settings.stop_deadline_s, close)

            self._write_plan(at, change.where, change.leaving, written, change.stop)

        if fresh:
            self._bring_up(now, brought_up)
        else:
            close(now)


def _left_behind(left: Iterable[Place]) -> tuple[str, ...]:
    nodes = ", ".join(node for node, _rack in left)
    return (f"no answer from {nodes}: what runs there is stopped when they look at the record",) if nodes else ()
