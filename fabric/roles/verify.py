"""Is what runs here still meant to run here? A compute agent asks the records, before it registers and now and then.

Theory of operation. While an agent is no member, its ordinals may be placed elsewhere. So **before** it registers it
comes home (`arrive`): it reads the record of every deployment that it runs a part of, stops what is not its own any
more, waits until that is gone, and then registers in one transaction that also checks the versions of those records
(`checks`, used by `member`). So at the moment in which ZooKeeper begins to count the node as present, it runs nothing
that was placed elsewhere; and a coordinator that writes a plan without this node, and sees afterwards that the node is
not there, knows that it will find out before it is (promise 2). A driver that can't stop something does not keep the
node away for ever: `home_wait_s`.

What had to be stopped for want of touch (`stop_after_s`), or was not running any more when the agent started, starts
again only after that.

Later, every `verify_every_s`, and when told to (`look`), the records are read again: what moved elsewhere, or was
deleted, while this agent could not be reached is stopped (promise 4).
"""

from __future__ import annotations

import random
from collections.abc import Iterable

from fabric.effects import StopInstance
from fabric.ordinals import format_ordinals
from fabric.records import BadRecord, Deployment, decode
from fabric.roles.instances import Instances
from fabric.roles.outbox import Outbox, earliest
from fabric.roles.settings import Identity, Settings
from fabric.roles.work import Work, instance_id
from zk import paths
from zk.tree import Check, Get, Got, NoNode, Outcome

PREFIX = "verify:"
AGAIN_S = 2.0


class Verifier:
    """Embed it in the compute role."""

    def __init__(
        self, identity: Identity, settings: Settings, rng: random.Random, out: Outbox, instances: Instances
    ) -> None:
        self._identity = identity
        self._settings = settings
        self._rng = rng
        self._out = out
        self._instances = instances
        self._due: dict[str, float] = {}
        self._coming_home = False
        self._unread: set[str] = set()
        self._versions: dict[str, int] = {}
        self._home_until = 0.0
        self._late = False

    # --- coming home ---------------------------------------------------------------------------------------------

    def arrive(self, now: float, changed: str = "") -> None:
        """About to register: read all records. Called again when one of them has changed meanwhile: that one."""
        deployment = changed.rpartition("/")[2]
        if self._coming_home and deployment in self._instances.works:
            self._versions.pop(deployment, None)
            self._unread.add(deployment)
            self._read(deployment)
            return
        if not self._coming_home:
            self._home_until = now + self._settings.home_wait_s
            self._late = False
        self._coming_home = True
        self._versions = {}
        self._unread = set(self._instances.works)
        for deployment in sorted(self._unread):
            self._read(deployment)

    @property
    def checks(self) -> tuple[Check, ...] | None:
        """The versions under which everything here is this node's own; None while that is not so yet."""
        if self._unread or not self._instances.adopted:
            return None
        if self._instances.ending and not self._late:
            return None
        known = sorted(set(self._instances.works) & set(self._versions))
        return tuple(Check(paths.deployment(one), self._versions[one]) for one in known)

    def registered(self, now: float) -> None:
        """At home."""
        self._coming_home = False
        for deployment in self._instances.works:
            self.schedule(now, deployment)

    # --- later -----------------------------------------------------------------------------------------------------

    def schedule(self, now: float, deployment: str) -> None:
        self._due.setdefault(deployment, now + self._settings.verify_every_s * (0.5 + self._rng.random()))

    def look(self, deployment: str) -> None:
        """Somebody says that what runs here may not be meant to."""
        if deployment in self._instances.works:
            self._read(deployment)

    def on_tree(self, now: float, token: str, outcome: Outcome) -> bool:
        if not token.startswith(PREFIX):
            return False
        deployment = token[len(PREFIX) :]
        self._due.pop(deployment, None)
        work = self._instances.works.get(deployment)
        if work is None:
            self._unread.discard(deployment)
            return True
        self.schedule(now, deployment)
        if isinstance(outcome, NoNode):
            self._unread.discard(deployment)
            self._versions.pop(deployment, None)
            self._give_up(now, work, tuple(work.entries), "its deployment does not exist any more")
        elif isinstance(outcome, Got):
            self._unread.discard(deployment)
            self._versions[deployment] = outcome.stat.version
            self._compare(now, work, outcome)
        else:
            self._due[deployment] = now + AGAIN_S
        return True

    def _compare(self, now: float, work: Work, found: Got) -> None:
        try:
            record = decode(found.data, Deployment, paths.deployment(work.deployment))
        except BadRecord as error:
            self._out.note("error", f"{error}; its instances run on")
            return
        here = (self._identity.node, self._identity.rack)
        mine = {
            ordinal
            for share in (*record.plan, *record.leaving)
            if (share.node, share.rack) == here
            for ordinal in share.numbers()
            if not record.gone
        }
        known = (record.epoch, record.step)
        over = (o for o, e in work.entries.items() if o not in mine and (record.gone or (e.epoch, e.step) <= known))
        gone = tuple(over)
        self._give_up(now, work, gone, f"generation {record.generation} of {record.id} has it elsewhere or not at all")
        if any(o not in mine and (e.epoch, e.step) > known for o, e in work.entries.items() if e.state != "stopping"):
            self._due[work.deployment] = now + AGAIN_S  # what was read is older than what we know

    def _give_up(self, now: float, work: Work, ordinals: Iterable[int], why: str) -> None:
        marked = self._instances.mark_stopping(work, tuple(ordinals))
        if marked:
            self._out.note("warning", f"{work.deployment}: stopping ordinals {format_ordinals(marked)}: {why}")
            self._instances.save(work)
            if self._coming_home:  # the wait is for each by itself: what was slow before says nothing about these
                self._home_until, self._late = now + self._settings.home_wait_s, False
            for ordinal in marked:
                self._out.add(StopInstance(instance_id(work.deployment, ordinal), self._settings.stop_grace_s))

    def _read(self, deployment: str) -> None:
        self._out.tree(f"{PREFIX}{deployment}", Get(paths.deployment(deployment)))

    # --- time ------------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        if self._coming_home and now >= self._home_until and not self._late:
            self._late = True
            if self._instances.ending:
                self._out.note("error", "registers though something that should not run here can't be stopped")
        for deployment in sorted(one for one, due in self._due.items() if due <= now):
            del self._due[deployment]
            if deployment in self._instances.works:
                self.schedule(now, deployment)
                self._read(deployment)

    @property
    def next_deadline(self) -> float | None:
        home = self._home_until if self._coming_home and not self._late else None
        return earliest(home, min(self._due.values()) if self._due else None)
