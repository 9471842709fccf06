"""The coordinator of one deployment: `reconcile` compares the record with what is there, and acts under its epoch.

Creating, scaling, deleting, going on after a dead coordinator or a node that died meanwhile are one thing:

        claim (recordkeeper)
          |
        reconcile: desired state against the plan in the record
          |- gone ................ stop everything -> close "deleted"
          |- ordinals too many ... write the plan without them -> stop them -> reconcile
          |- ordinals missing .... reserve (reserving) -> write the plan -> confirm
          '- all in the plan ..... confirm (starting)
                                     |- all run ........... close "running"
                                     |- some must move .... stop them where they are -> write the plan -> reconcile
                                     '- none can start .... stop everything -> close "failed"

Order is what makes it safe: the plan is in ZooKeeper **before** anything is confirmed, and ordinals leave the plan
before they are stopped; so whoever takes over reads in the record what may be running where. A user's change that comes
in the middle is seen when it is submitted (`look`), or at the latest as a failed write; the coordinator adopts the new
record and reconciles again, under the same epoch.

A scale-up that cannot be placed leaves the deployment as it was, and says why.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import msgspec

from fabric.commands import Progress
from fabric.messages import Submit
from fabric.ordinals import format_ordinals
from fabric.records import Deployment, Share, State
from fabric.roles.calls import RackCalls
from fabric.roles.charge import MEMBERS, Charge, Place
from fabric.roles.outbox import Outbox, earliest
from fabric.roles.recorder import Recorder
from fabric.roles.recordkeeper import RecordKeeper
from fabric.roles.reserving import Reservations, Reserving, cancel
from fabric.roles.settings import Identity, Settings
from fabric.roles.starting import Starting, StartResult
from fabric.roles.stopping import Stopping
from fabric.roles.trace import BadTrace, Run, Trace, pack, unpack
from zk import paths
from zk.tree import Get, Got, Listed, NoNode, Outcome

MAX_MOVES = 3
"""How often ordinals of one deployment are placed elsewhere before it counts as failed."""
MAX_REASONS = 40


class Coordinator:
    """`done(now, deployment)` is called once, at the end: settled, fenced, or not ours."""

    def __init__(
        self,
        deployment: str,
        submit: Submit | None,
        identity: Identity,
        settings: Settings,
        session: int,
        rng: random.Random,
        out: Outbox,
        calls: RackCalls,
        now: float,
        done: Callable[[float, str], None],
    ) -> None:
        self.deployment = deployment
        self._out = out
        self._finished = done
        self._settings = settings
        self._keeper = RecordKeeper(deployment, identity, session, out, self._claimed, self._changed, self._lost)
        self._recorder = Recorder(identity, now, out.wall_ms, submit)
        self._charge = Charge(
            identity, settings, rng, out, calls, self._keeper, self._recorder, self._abdicate
        )
        self._phase: Reserving | Starting | Stopping | None = None
        self._earlier: tuple[Run, ...] = ()
        self._exclude: set[str] = set()
        self._moves = 0
        self._short_because: tuple[str, ...] = ()
        self._moved_because: tuple[str, ...] = ()
        self._unplanned: set[Place] = set()
        self._ended = False

    @property
    def claimed(self) -> bool:
        return self._keeper.epoch > 0

    @property
    def prefix(self) -> str:
        return self._keeper.prefix

    # --- inputs --------------------------------------------------------------------------------------------------

    def begin(self, now: float) -> None:
        self._keeper.claim(now)

    def on_tree(self, now: float, token: str, outcome: Outcome) -> None:
        if self._ended:
            return
        if token == f"{self.prefix}trace":
            if isinstance(outcome, Got):
                try:
                    self._earlier = unpack(outcome.data).runs
                except BadTrace as error:
                    self._out.note("warning", f"{self.deployment}: {error}; earlier runs are left out")
        elif token.startswith(f"{self.prefix}{MEMBERS}"):
            rack = token[len(self.prefix) + len(MEMBERS) :]
            if isinstance(self._phase, Starting | Stopping) and isinstance(outcome, Listed | NoNode):
                present = frozenset(outcome.names if isinstance(outcome, Listed) else ())
                self._phase.on_members(now, rack, present)
        else:
            self._keeper.on_tree(now, token, outcome)

    def on_report(self, now: float, epoch: int, node: str, progress: Progress) -> None:
        if epoch == self._charge.epoch and isinstance(self._phase, Starting):
            self._phase.on_report(now, node, progress)

    def look(self) -> None:
        """A user may have changed the record: a change does not wait for the end of a phase."""
        self._keeper.look()

    def hold(self) -> None:
        """The session is SUSPENDED: nothing is awarded."""
        self._charge.hold()

    def release(self, now: float) -> None:
        self._charge.release(now)

    def drop(self) -> None:
        """The session is LOST: whoever claims next goes on from the record."""
        self._ended = True
        self._charge.drop()

    def tick(self, now: float) -> None:
        if not self._ended:
            self._keeper.tick(now)
        if not self._ended and self._phase is not None:
            self._phase.tick(now)

    @property
    def next_deadline(self) -> float | None:
        return earliest(self._keeper.next_deadline, self._phase.next_deadline if self._phase else None)

    # --- reconcile -----------------------------------------------------------------------------------------------

    def _claimed(self, now: float) -> None:
        if self._keeper.record.settled > 0:
            self._out.tree(f"{self.prefix}trace", Get(paths.trace(self.deployment)))
        record = self._keeper.record
        self._recorder.span(3, now - self._recorder.after_ms(now) / 1000, now, f"epoch {self._charge.epoch}")
        self._out.note("info", f"{self.deployment}: coordinating {record.count} x {record.spec.flavor}")
        self._reconcile(now)

    def _changed(self, now: float) -> None:
        """A user changed the record while this coordinator worked: what was reserved for the old wish goes back."""
        self._charge.drop()
        if isinstance(self._phase, Reserving):
            self._unplanned |= self._phase.touched
        self._phase = None
        cancel(self._charge, now, self._unplanned)
        self._unplanned = set()
        self._reconcile(now)

    def _reconcile(self, now: float) -> None:
        record = self._keeper.record
        where = _placed(record.plan)
        if record.gone:
            self._stop(now, _whole(record.plan), self._settings.stop_deadline_s, self._deleted)
            return
        surplus = {ordinal for ordinal in where if ordinal >= record.count}
        if surplus:
            self._shrink(now, surplus, surplus)
            return
        missing = tuple(ordinal for ordinal in range(record.count) if ordinal not in where)
        if not missing:
            self._confirm(now)
            return
        used: dict[str, int] = {}
        for node, _rack in where.values():
            used[node] = used.get(node, 0) + 1
        need = max(0, (record.count if self._scaling else record.min_count) - len(where))
        phase = Reserving(self._charge, missing, need, used, frozenset(self._exclude), self._reserved)
        self._phase = phase
        phase.begin(now)

    @property
    def _scaling(self) -> bool:
        """Something of it was settled before: a change that cannot be made leaves that as it was."""
        return self._keeper.record.had > 0

    def _reserved(self, now: float, got: Reservations) -> None:
        record = self._keeper.record
        got = Reservations(got.places, (*self._moved_because, *got.reasons) if got.reasons else ())
        self._short_because = got.reasons
        where = _placed(record.plan)
        if not got.places and self._scaling:
            self._revert(now, got.reasons)
        elif not got.places and len(where) < max(1, record.min_count):
            what = f"{record.count - len(where)} of {record.count} instances found no place"
            self._fail(now, what, got.reasons)
        elif not got.places:
            self._confirm(now)
        else:
            self._unplanned = set(got.places.values())
            self._write_plan(now, plan_of({**where, **got.places}), self._confirm)

    def _write_plan(self, now: float, plan: tuple[Share, ...], then: Callable[[float], None]) -> None:
        """Into the record, under the epoch; the next step's commands are for this plan."""
        charge = self._charge
        planned = msgspec.structs.replace(
            self._keeper.record,
            state="starting",
            plan=plan,
            epoch=charge.epoch,
            step=charge.next_step(),
            had=min(self._keeper.record.had, self._keeper.record.count),
            updated_ms=self._out.wall_ms,
        )
        self._phase = None

        def written(at: float) -> None:
            self._unplanned = set()
            self._recorder.span(6, now, at, f"plan for {len(plan)} nodes written before anything starts")
            then(at)

        self._keeper.write(now, planned, written)

    def _confirm(self, now: float) -> None:
        """All of the plan: new shares start, old ones are asked how they are."""
        record = self._keeper.record
        step = self._charge.step
        if record.epoch != self._charge.epoch:
            step = self._charge.next_step()
        phase = Starting(self._charge, record.plan, record.had, step, self._started)
        self._phase = phase
        phase.begin(now)

    def _started(self, now: float, result: StartResult) -> None:
        record = self._keeper.record
        if result.fatal:
            self._give_up(now, result.fatal, tuple(sorted(set(result.moves.values()))))
            return
        if not result.moves:
            self._close(now, "running", self._short(record))
            return
        self._moves += 1
        reasons = tuple(sorted(set(result.moves.values())))
        if self._moves > MAX_MOVES:
            self._give_up(now, f"placed elsewhere {MAX_MOVES} times in vain", reasons)
            return
        self._moved_because = (*self._moved_because, *reasons)[:MAX_REASONS]
        where = _placed(record.plan)
        self._exclude |= {where[ordinal][0] for ordinal in result.moves}
        why = "; ".join(reasons)[:300]
        self._out.note("warning", f"{self.deployment}: placing {len(result.moves)} elsewhere: {why}")
        self._recorder.round(now, len(result.moves), 0, (), "; ".join(reasons))
        self._shrink(now, set(result.moves), set(result.at_node))

    def _short(self, record: Deployment) -> tuple[str, ...]:
        if record.placed < record.count:
            return (f"placed {record.placed} of {record.count}", *self._short_because)
        return ()

    def _shrink(self, now: float, ordinals: set[int], stop: set[int]) -> None:
        """Take `ordinals` out of the plan, then stop those in `stop` where they are, then reconcile."""
        where = _placed(self._keeper.record.plan)
        targets: dict[Place, tuple[int, ...]] = {}
        for ordinal in sorted(stop):
            targets[where[ordinal]] = (*targets.get(where[ordinal], ()), ordinal)
        plan = plan_of({ordinal: place for ordinal, place in where.items() if ordinal not in ordinals})
        # They may run there until the node says otherwise, so they are not placed elsewhere before it does, or is gone.
        wait_s = self._settings.start_deadline_s
        self._write_plan(now, plan, lambda at: self._stop(at, targets, wait_s, self._after_stop))

    def _after_stop(self, now: float, left: tuple[Place, ...]) -> None:
        if left:
            self._give_up(now, "nodes that must stop what they run did not answer", _left_behind(left))
        else:
            self._reconcile(now)

    def _stop(
        self,
        now: float,
        targets: dict[Place, tuple[int, ...]],
        deadline_s: float,
        then: Callable[[float, tuple[Place, ...]], None],
    ) -> None:
        phase = Stopping(self._charge, targets, deadline_s, then)
        self._phase = phase
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
            self._close(at, "failed", (reason, *reasons, *_left_behind(left)), plan=())

        self._stop(now, _whole(self._keeper.record.plan), self._settings.stop_deadline_s, stopped)

    def _revert(self, now: float, reasons: tuple[str, ...]) -> None:
        """Back to the ordinals that were settled before: those beyond leave the plan, and are stopped."""
        record = self._keeper.record
        had = record.had
        if record.count > had:
            reasons = (f"scaling to {record.count} was not possible, still {had}", *reasons)
        where = _placed(record.plan)
        beyond = {ordinal for ordinal in where if ordinal >= had}
        if not beyond:
            self._close(now, "running", reasons, count=had)
            return
        targets: dict[Place, tuple[int, ...]] = {}
        for ordinal in sorted(beyond):
            targets[where[ordinal]] = (*targets.get(where[ordinal], ()), ordinal)
        plan = plan_of({ordinal: place for ordinal, place in where.items() if ordinal not in beyond})

        def stopped(at: float, left: tuple[Place, ...]) -> None:
            self._close(at, "running", (*reasons, *_left_behind(left)), count=had)

        wait_s = self._settings.stop_deadline_s
        self._write_plan(now, plan, lambda at: self._stop(at, targets, wait_s, stopped))

    def _close(
        self,
        now: float,
        state: State,
        reasons: tuple[str, ...],
        plan: tuple[Share, ...] | None = None,
        count: int | None = None,
    ) -> None:
        self._phase = None
        record = self._keeper.record
        kept = record.count if count is None else count
        final = msgspec.structs.replace(
            record,
            state=state,
            settled=record.generation,
            plan=record.plan if plan is None else plan,
            count=kept,
            min_count=min(record.min_count, kept),
            had=kept if state == "running" else 0,
            reason=reasons[0][:500] if reasons else "",
            reasons=tuple(reason[:300] for reason in reasons[1:MAX_REASONS]),
            epoch=self._charge.epoch,
            step=self._charge.step,
            updated_ms=self._out.wall_ms,
        )
        run = self._recorder.finish(
            now, record.generation, self._charge.epoch, state, reasons, self._keeper.writes + 1, self._keeper.reads
        )
        self._keeper.close(now, final, pack(Trace((*self._earlier, run))), self._closed)

    def _closed(self, now: float) -> None:
        record = self._keeper.record
        short = f": {record.reason}" if record.reason else ""
        self._out.note("info", f"{self.deployment}: {record.state} after {self._recorder.after_ms(now)} ms{short}")
        self._end(now)

    def _abdicate(self, now: float, why: str) -> None:
        """An agent has orders of a later epoch."""
        self._charge.drop()
        self._phase = None
        self._keeper.abandon(now, why)

    def _lost(self, now: float, why: str) -> None:
        self._out.note("info", f"{self.deployment}: not coordinated here any more: {why}")
        self._end(now)

    def _end(self, now: float) -> None:
        if not self._ended:
            self._ended = True
            self._phase = None
            self._charge.drop()
            self._finished(now, self.deployment)


def _placed(plan: tuple[Share, ...]) -> dict[int, Place]:
    return {ordinal: (share.node, share.rack) for share in plan for ordinal in share.numbers()}


def _whole(plan: tuple[Share, ...]) -> dict[Place, tuple[int, ...]]:
    """Everything of the deployment, wherever the plan has some of it (see `Stopping`)."""
    return {(share.node, share.rack): () for share in plan}


def _left_behind(left: tuple[Place, ...]) -> tuple[str, ...]:
    if not left:
        return ()
    nodes = ", ".join(node for node, _rack in left)
    return (f"no answer from {nodes}: what runs there is stopped when they look at the record",)


def plan_of(where: dict[int, Place]) -> tuple[Share, ...]:
    """The shares of a plan, sorted by rack and node, from ordinal -> place."""
    by_place: dict[Place, list[int]] = {}
    for ordinal, place in where.items():
        by_place.setdefault(place, []).append(ordinal)
    return tuple(
        Share(node=node, rack=rack, ordinals=format_ordinals(ordinals))
        for (node, rack), ordinals in sorted(by_place.items(), key=lambda item: (item[0][1], item[0][0]))
    )
