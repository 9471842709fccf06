"""What a compute rack leader does beside its rack: coordinate deployments, and look for those that need it.

Deployments reach it in three ways: by `Submit` (step 3), by its sweep over the open markers (`sweep`), and by its
patrol over those at rest (`patrol`), which also looks after lost nodes (`losses`) with the other leaders. Sweep and
patrol are shared by all leaders: rendezvous hashing says which leader looks after which deployment, so nothing waits
for one process, and two leaders that disagree for a moment meet at the owner znode, which only one of them gets.
"""

from __future__ import annotations

import random
import re

from fabric.messages import NodeReport, Submit, Submitted
from fabric.roles.calls import RackCalls
from fabric.roles.census import Census
from fabric.roles.coordinator import Coordinator
from fabric.roles.leaders import LeaderDirectory, looks_after
from fabric.roles.losses import Losses
from fabric.roles.outbox import Outbox, earliest
from fabric.roles.patrol import Patrol
from fabric.roles.rack import RackLeader
from fabric.roles.settings import Identity, Settings
from fabric.roles.sweep import Sweep
from zk import paths
from zk.tree import Delete, Outcome, SessionChanged

_ID = re.compile(r"d-[0-9a-z]{6,24}")
LEFT = "left:"
"""Token of the end of an owner znode that nobody waits for."""


class Leading:
    """Embed it; it acts only between `begin` and `end`."""

    def __init__(
        self, identity: Identity, settings: Settings, rng: random.Random, out: Outbox, rack: RackLeader
    ) -> None:
        self._identity = identity
        self._settings = settings
        self._rng = rng
        self._out = out
        self.directory = LeaderDirectory("compute", out)
        self.calls = RackCalls(out, self.directory, f"{identity.guid[:8]}-c-", settings.hop_margin_s)
        self.census = Census(out)
        self.losses = Losses(identity, settings, out, self.census, rack.is_member, self._answers_for)
        rack.on_vanished, rack.on_appeared = self.losses.vanished, self.losses.appeared
        self.patrol = Patrol(
            settings,
            rng,
            out,
            self.census,
            self.losses,
            is_mine=lambda one: _ID.fullmatch(one) is not None and self._is_mine(one),
            leaders=lambda: len(self.directory.leaders),
            free=lambda one: one not in self._charges and self._room(),
            take=lambda now, one: self._take(now, one),
        )
        self._sweep = Sweep(
            settings,
            rng,
            out,
            is_mine=lambda one: _ID.fullmatch(one) is not None and one not in self._charges and self._is_mine(one),
            room=self._room,
            take=lambda now, one: self._take(now, one),
        )
        self._led: dict[str, int] = {}
        """Rack -> its leader's epoch, when that last changed."""
        self._charges: dict[str, Coordinator] = {}
        self._once_more: dict[str, tuple[str, Submit]] = {}
        """Submitted again while in charge: a change may have come too late for that coordinator, so look once more."""
        self._session = 0
        self._active = False
        self._held = False
        self._wants: frozenset[tuple[str, int]] = frozenset()

    @property
    def load(self) -> int:
        return len(self._charges)

    def begin(self, now: float, session: int) -> None:
        if self._active:
            self.patrol.soon(now, self._settings.orphan_after_s, around=True)  # out of touch, members may have gone
            return
        self._active = True
        self._session = session
        self.directory.start()
        self.census.start()
        self.losses.begin(now)
        self.patrol.begin(now)
        self._sweep.begin(now, session)

    def end(self, session_lives: bool) -> None:
        """Leadership is over: everything in charge is dropped, and the next owner reads the records. In a session that
        lives on, the owner znodes must not: nobody else could claim what they stand for."""
        self._active = False
        for charge in self._charges.values():
            charge.drop()
            if session_lives and charge.claimed:
                self._out.tree(LEFT, Delete(paths.owner(charge.deployment)))
        self._charges.clear()
        self._once_more.clear()
        self.directory.stop()
        self.census.stop()
        self.losses.end()
        self.patrol.end()
        self._led.clear()
        self._sweep.end()

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
            self._once_more[submit.deployment] = (sender, submit)
            self._charges[submit.deployment].look()
        elif not self._active or self._held:
            reason = "this agent does not lead its rack now"
        elif not self._room():
            reason = f"{len(self._charges)} deployments are in its charge, the most it takes"
        else:
            reason = ""
            self._take(now, submit.deployment, sender, submit)
        self._out.send(sender, Submitted(submit.call, not reason, reason))

    def on_report(self, now: float, report: NodeReport) -> None:
        charge = self._charges.get(report.deployment)
        if charge is not None:
            charge.on_report(now, report.epoch, (report.node, report.rack), report.progress)

    def on_session(self, event: SessionChanged) -> None:
        self.directory.on_session(event)
        self.census.on_session(event)

    def on_watch(self, path: str) -> None:
        self.directory.on_watch(path)
        self.census.on_watch(path)

    def on_tree(self, now: float, token: str, outcome: Outcome) -> bool:
        if self.directory.on_tree(now, token, outcome):
            self.calls.on_leaders_changed()
            self._on_leaders(now)
            return True
        if self.census.on_tree(now, token, outcome):
            self.losses.changed(now)
            wants, self._wants = self._wants, self.census.wants
            if not self._wants <= wants:
                self.patrol.soon(now)
            return True
        if self.losses.on_tree(now, token, outcome) or self.patrol.on_tree(now, token, outcome):
            return True
        if token.startswith("dep:"):
            charge = self._charges.get(token.split(":", 2)[1])
            if charge is not None:
                charge.on_tree(now, token, outcome)
            return True
        return token == LEFT or self._sweep.on_tree(now, token, outcome, self._held)

    def _take(self, now: float, deployment: str, submitter: str = "", submit: Submit | None = None) -> None:
        charge = Coordinator(
            deployment,
            submit,
            submitter,
            self._identity,
            self._settings,
            self._session,
            self._rng,
            self._out,
            self.calls,
            self.census,
            now,
            self._ended,
        )
        self._charges[deployment] = charge
        charge.begin(now)

    def _ended(self, now: float, deployment: str) -> None:
        self._charges.pop(deployment, None)
        again = self._once_more.pop(deployment, None)
        if again is not None and self._active and not self._held:
            self._take(now, deployment, *again)

    # --- what is whose -------------------------------------------------------------------------------------------

    def _room(self) -> bool:
        return len(self._charges) < self._settings.max_coordinated

    def _is_mine(self, name: str) -> bool:
        """Rendezvous hashing over the racks that have a leader."""
        racks = self.directory.leaders
        return (self._identity.rack in racks or not racks) and looks_after(self._identity.rack, name, racks)

    def _answers_for(self, rack: str) -> bool:
        """The own rack, and those without a leader that fall to this one."""
        return rack == self._identity.rack or (rack not in self.directory.leaders and self._is_mine(rack))

    def _on_leaders(self, now: float) -> None:
        """A rack that lost its leader, or got another one, may have lost members that nobody saw go."""
        if not self.directory.complete:
            return  # what is read one after the other is compared once
        led = {rack: seen.epoch for rack, seen in self.directory.leaders.items()}
        if led != self._led:
            self._led = led
            self.losses.changed(now)
            self.patrol.soon(now, self._settings.orphan_after_s * (0.5 + self._rng.random()), around=True)

    # --- time ----------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        if not self._active:
            return
        self.directory.tick(now)
        self.calls.tick(now)
        self.census.tick(now)
        if not self._held:
            self.losses.tick(now)
        self.patrol.tick(now, self._held)
        for charge in list(self._charges.values()):
            charge.tick(now)
        self._sweep.tick(now, self._held)

    @property
    def next_deadline(self) -> float | None:
        if not self._active:
            return None
        first: float | None = None
        for charge in self._charges.values():
            first = earliest(first, charge.next_deadline)
        return earliest(
            first,
            self.directory.next_deadline,
            self.calls.next_deadline,
            self.census.next_deadline,
            None if self._held else self.losses.next_deadline,
            None if self._held else self.patrol.next_deadline,
            self._sweep.next_deadline,
        )
