"""What a compute rack leader does beside its rack: coordinate deployments, and look for those that nobody coordinates.

Deployments reach it in two ways: by `Submit` (step 3), and by its own sweep over the open markers. The sweep is shared
by all leaders: rendezvous hashing says which leader looks after which deployment, so nothing waits for one process, and
two leaders that disagree for a moment meet at the owner znode, which only one of them gets.

It also prunes: final records beyond `keep_final`, or older than `keep_final_s`, go, oldest first, a few at a time.
"""

from __future__ import annotations

import random
import re
import zlib

from fabric.messages import NodeReport, Submit, Submitted
from fabric.records import BadRecord, Deployment, decode
from fabric.roles.calls import RackCalls
from fabric.roles.coordinator import Coordinator
from fabric.roles.leaders import LeaderDirectory
from fabric.roles.outbox import Outbox, earliest
from fabric.roles.settings import Identity, Settings
from zk import paths
from zk.tree import Children, Delete, Existed, Exists, Get, Got, Listed, Multi, Outcome

_ID = re.compile(r"d-[0-9a-z]{6,24}")
SWEEP = "sweep:"
PRUNE = "prune:"
PRUNE_BATCH = 100
MAX_SWEPT = 64
"""Orphaned deployments taken in one sweep, at most."""


class Leading:
    """Embed it; it acts only between `begin` and `end`."""

    def __init__(self, identity: Identity, settings: Settings, rng: random.Random, out: Outbox) -> None:
        self._identity = identity
        self._settings = settings
        self._rng = rng
        self._out = out
        self.directory = LeaderDirectory("compute", out)
        self.calls = RackCalls(out, self.directory, f"{identity.guid[:8]}-c-", settings.hop_margin_s)
        self._charges: dict[str, Coordinator] = {}
        self._once_more: dict[str, Submit] = {}
        """Submitted again while in charge: a change may have come too late for that coordinator, so look once more."""
        self._session = 0
        self._active = False
        self._held = False
        self._sweep_at: float | None = None
        self._prune_at: float | None = None
        self._pruned_to = ""
        self._finals = 0
        self._beyond = 0

    @property
    def load(self) -> int:
        return len(self._charges)

    def begin(self, now: float, session: int) -> None:
        if self._active:
            return
        self._active = True
        self._session = session
        self.directory.start()
        self._sweep_at = now + self._settings.sweep_interval_s * self._rng.random()
        self._prune_at = now + self._settings.prune_interval_s * (0.5 + self._rng.random())

    def end(self, session_lives: bool) -> None:
        """Leadership is over: everything in charge is dropped, and the next owner reads the records. In a session that
        lives on, the owner znodes must not: nobody else could claim what they stand for."""
        self._active = False
        for charge in self._charges.values():
            charge.drop()
            if session_lives and charge.claimed:
                self._out.tree(f"{SWEEP}left", Delete(paths.owner(charge.deployment)))
        self._charges.clear()
        self._once_more.clear()
        self.directory.stop()
        self._sweep_at = self._prune_at = None

    def hold(self) -> None:
        self._held = self.calls.held = True
        for charge in self._charges.values():
            charge.hold()

    def release(self, now: float) -> None:
        self._held = self.calls.held = False
        for charge in list(self._charges.values()):
            charge.release(now)

    # --- inputs --------------------------------------------------------------------------------------------------

    def on_submit(self, now: float, sender: str, submit: Submit) -> None:
        if submit.deployment in self._charges:
            reason = ""
            self._once_more[submit.deployment] = submit
            self._charges[submit.deployment].look()
        elif not self._active or self._held:
            reason = "this agent does not lead its rack now"
        elif len(self._charges) >= self._settings.max_coordinated:
            reason = f"{len(self._charges)} deployments are in its charge, the most it takes"
        else:
            reason = ""
            self._take(now, submit.deployment, submit)
        self._out.send(sender, Submitted(submit.call, not reason, reason))

    def on_report(self, now: float, report: NodeReport) -> None:
        charge = self._charges.get(report.deployment)
        if charge is not None:
            charge.on_report(now, report.epoch, report.node, report.progress)

    def on_tree(self, now: float, token: str, outcome: Outcome) -> bool:
        if self.directory.on_tree(now, token, outcome):
            self.calls.on_leaders_changed()
            return True
        if token.startswith("dep:"):
            charge = self._charges.get(token.split(":", 2)[1])
            if charge is not None:
                charge.on_tree(now, token, outcome)
            return True
        if token.startswith(SWEEP):
            self._swept(now, token[len(SWEEP) :], outcome)
            return True
        if token.startswith(PRUNE):
            self._pruned(token[len(PRUNE) :], outcome)
            return True
        return False

    def _take(self, now: float, deployment: str, submit: Submit | None) -> None:
        charge = Coordinator(
            deployment,
            submit,
            self._identity,
            self._settings,
            self._session,
            self._rng,
            self._out,
            self.calls,
            now,
            self._ended,
        )
        self._charges[deployment] = charge
        charge.begin(now)

    def _ended(self, now: float, deployment: str) -> None:
        self._charges.pop(deployment, None)
        again = self._once_more.pop(deployment, None)
        if again is not None and self._active and not self._held:
            self._take(now, deployment, again)

    # --- sweep and prune -----------------------------------------------------------------------------------------

    def _swept(self, now: float, deployment: str, outcome: Outcome) -> None:
        if not self._active or self._held:
            return
        if isinstance(outcome, Listed):
            mine = [
                one
                for one in outcome.names
                if _ID.fullmatch(one) and one not in self._charges and self._is_mine(one)
            ]
            for one in mine[:MAX_SWEPT]:
                self._out.tree(f"{SWEEP}{one}", Exists(paths.owner(one)))
        elif isinstance(outcome, Existed) and deployment not in self._charges:
            if outcome.stat is not None and outcome.stat.owner != self._session:
                return  # somebody coordinates it; one of our own session, not in our charge, is a leftover of ours
            if len(self._charges) >= self._settings.max_coordinated:
                return  # the next sweep finds it again
            self._out.note("info", f"{deployment}: open and without an owner: taking it")
            self._take(now, deployment, None)

    def _is_mine(self, deployment: str) -> bool:
        """Rendezvous hashing over the racks that have a leader."""
        racks = sorted(self.directory.leaders) or [self._identity.rack]
        best = max(racks, key=lambda rack: zlib.crc32(rack.encode(), zlib.crc32(deployment.encode())))
        return best == self._identity.rack

    def _pruned(self, deployment: str, outcome: Outcome) -> None:
        if not self._active or self._held:
            return
        if isinstance(outcome, Listed):
            self._prune_some(outcome.names)
        elif isinstance(outcome, Got):
            path = paths.deployment(deployment)
            try:
                record = decode(outcome.data, Deployment, path)
            except BadRecord as error:
                self._out.note("warning", f"{error}; it is left as it is")
                return
            if record.state not in ("failed", "deleted") or not record.final:
                return
            self._finals += 1
            aged = self._out.wall_ms - record.updated_ms > self._settings.keep_final_s * 1000
            if aged or self._beyond > 0:
                self._beyond -= 1
                self._finals -= 1
                keys = (Delete(paths.key(record.key)),) if record.key else ()
                gone = Multi((Delete(paths.trace(deployment)), Delete(path, outcome.stat.version), *keys))
                self._out.tree(f"{PRUNE}gone", gone)

    def _prune_some(self, names: tuple[str, ...]) -> None:
        """The next few of this leader's share, oldest first; at the end of the list it is known how many final ones
        there are, and so how many are too many in the next round."""
        mine = [name for name in names if _ID.fullmatch(name) and self._is_mine(name)]
        batch = [name for name in mine if name > self._pruned_to][:PRUNE_BATCH]
        if len(batch) < PRUNE_BATCH:
            self._beyond = max(0, self._finals - self._settings.keep_final // max(1, len(self.directory.leaders)))
            self._finals = 0
        self._pruned_to = batch[-1] if len(batch) == PRUNE_BATCH else ""
        for name in batch:
            self._out.tree(f"{PRUNE}{name}", Get(paths.deployment(name)))

    # --- time ----------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        if not self._active:
            return
        self.directory.tick(now)
        self.calls.tick(now)
        for charge in list(self._charges.values()):
            charge.tick(now)
        if self._sweep_at is not None and now >= self._sweep_at:
            self._sweep_at = now + self._settings.sweep_interval_s * (0.75 + 0.5 * self._rng.random())
            if not self._held:
                self._out.tree(SWEEP, Children(paths.OPEN))
        if self._prune_at is not None and now >= self._prune_at:
            self._prune_at = now + self._settings.prune_interval_s * (0.75 + 0.5 * self._rng.random())
            if not self._held:
                self._out.tree(PRUNE, Children(paths.DEPLOYMENTS))

    @property
    def next_deadline(self) -> float | None:
        if not self._active:
            return None
        charges = (one for charge in self._charges.values() if (one := charge.next_deadline) is not None)
        return earliest(
            self.directory.next_deadline,
            self.calls.next_deadline,
            min(charges, default=None),
            self._sweep_at,
            self._prune_at,
        )
