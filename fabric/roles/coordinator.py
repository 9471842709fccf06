"""The coordinator of one deployment: claims it, reconciles it (`reconcile`), and closes it, all under one epoch.

It holds what a claim is made of: the record and its fence (`recordkeeper`), who is asked and how (`charge`), what is
noted of it (`recorder`). A user's change that comes in the middle is seen when it is submitted (`look`), or at the
latest as a failed write; the coordinator adopts the new record and reconciles again, under the same epoch. SUSPENDED
holds it, LOST drops it, and a later epoch, wherever it is met, ends it: whoever owns the deployment then reads in the
record what may be running where.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection

from fabric.commands import Progress
from fabric.messages import RecordNews, RecordSeen, Submit
from fabric.records import Share, State
from fabric.roles import plans
from fabric.roles.calls import RackCalls
from fabric.roles.census import Census
from fabric.roles.charge import GONE, MEMBERS, Charge
from fabric.roles.outbox import Outbox, earliest
from fabric.roles.plans import Place
from fabric.roles.reconcile import Reconcile
from fabric.roles.recorder import Recorder
from fabric.roles.recordkeeper import RecordKeeper
from fabric.roles.settings import Identity, Settings
from fabric.roles.starting import Starting
from fabric.roles.stopping import Stopping
from fabric.roles.trace import BadTrace, Run, Trace, pack, unpack
from zk import paths
from zk.tree import Existed, Get, Got, Listed, NoNode, Outcome


class Coordinator:
    """`done(now, deployment)` is called once, at the end: settled, fenced, or not ours. `submitter`: who gave it to us,
    and hears of every write; empty when nobody did."""

    def __init__(
        self,
        deployment: str,
        submit: Submit | None,
        submitter: str,
        identity: Identity,
        settings: Settings,
        session: int,
        rng: random.Random,
        out: Outbox,
        calls: RackCalls,
        census: Census,
        now: float,
        done: Callable[[float, str], None],
    ) -> None:
        self.deployment = deployment
        self._out = out
        self._finished = done
        self._submit = submit
        self._submitter = submitter
        self._keeper = RecordKeeper(
            deployment, identity, session, out, self._claimed, self._changed, self._lost, self._elsewhere, self._wrote
        )
        self._recorder = Recorder(identity, now, out.wall_ms, submit)
        self._charge = Charge(
            identity, settings, rng, out, calls, census, self._keeper, self._recorder, self._abdicate
        )
        self._work = Reconcile(self._charge, out, self._close)
        self._earlier: tuple[Run, ...] = ()
        self._ended = False

    @property
    def claimed(self) -> bool:
        return self._keeper.epoch > 0

    @property
    def prefix(self) -> str:
        return self._keeper.prefix

    # --- inputs --------------------------------------------------------------------------------------------------

    def begin(self, now: float) -> None:
        self._keeper.claim(now, self._submit.seen if self._submit is not None else None)

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
            phase = self._work.phase
            if isinstance(phase, Starting | Stopping) and isinstance(outcome, Listed | NoNode):
                phase.on_members(now, rack, frozenset(outcome.names if isinstance(outcome, Listed) else ()))
        elif token.startswith(f"{self.prefix}{GONE}"):
            node, _, rack = token[len(self.prefix) + len(GONE) :].partition("/")
            if isinstance(self._work.phase, Stopping) and outcome == Existed(None):
                self._work.phase.on_gone(now, (node, rack))
        else:
            self._keeper.on_tree(now, token, outcome)

    def on_report(self, now: float, epoch: int, place: Place, progress: Progress) -> None:
        if epoch == self._charge.epoch and isinstance(self._work.phase, Starting):
            self._work.phase.on_report(now, place, progress)

    def look(self) -> None:
        """A user may have changed the record: a change does not wait for the end of a phase."""
        self._keeper.look()

    def hold(self) -> None:
        """The session is SUSPENDED: nothing is awarded."""
        self._charge.hold()

    def release(self, now: float) -> None:
        if self._charge.held and isinstance(self._work.phase, Starting):
            self._work.phase.on_release(now)
        self._charge.release(now)

    def drop(self) -> None:
        """The session is LOST: whoever claims next goes on from the record."""
        self._ended = True
        self._charge.drop()

    def tick(self, now: float) -> None:
        if not self._ended:
            self._keeper.tick(now)
        if not self._ended and self._work.phase is not None:
            self._work.phase.tick(now)

    @property
    def next_deadline(self) -> float | None:
        return earliest(self._keeper.next_deadline, self._work.phase.next_deadline if self._work.phase else None)

    # --- the claim -----------------------------------------------------------------------------------------------

    def _claimed(self, now: float) -> None:
        if self._keeper.record.settled > 0:
            self._out.tree(f"{self.prefix}trace", Get(paths.trace(self.deployment)))
        record = self._keeper.record
        self._recorder.span(3, now - self._recorder.after_ms(now) / 1000, now, f"epoch {self._charge.epoch}")
        self._out.note("info", f"{self.deployment}: coordinating {record.count} x {record.spec.flavor}")
        self._work.begin(now)

    def _changed(self, now: float) -> None:
        self._charge.drop()
        self._work.changed(now)

    def _close(
        self,
        now: float,
        state: State,
        reasons: tuple[str, ...],
        plan: tuple[Share, ...] | None = None,
        count: int | None = None,
        left: Collection[Place] = (),
    ) -> None:
        self._work.phase = None
        record = self._keeper.record
        final = plans.settled(
            record,
            state,
            reasons,
            record.plan if plan is None else plan,
            record.count if count is None else count,
            left,
            (self._charge.epoch, self._charge.step),
            self._out.wall_ms,
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
        self._work.phase = None
        self._keeper.abandon(now, why)

    def _lost(self, now: float, why: str) -> None:
        self._out.note("info", f"{self.deployment}: not coordinated here any more: {why}")
        self._end(now)

    def _wrote(self, seen: RecordSeen, closed: bool) -> None:
        if self._submitter:
            self._out.send(self._submitter, RecordNews(self.deployment, seen, closed))

    def _elsewhere(self, address: str) -> None:
        """Another coordinates it: if a user has changed it, that one must hear of it."""
        if self._submit is not None and address != self._charge.identity.address:
            self._out.send(address, self._submit)

    def _end(self, now: float) -> None:
        if not self._ended:
            self._ended = True
            self._work.phase = None
            self._charge.drop()
            self._finished(now, self.deployment)
