"""Promise 6: out of touch with ZooKeeper nothing is awarded, replaced or stopped, and nobody goes on leading.

"outage": a role whose session is not CONNECTED, as far as it knows, must not send orders of its own to other nodes, and
an agent stops an instance only because it was told to, or because it finds out that nobody wants it. "leading": a role
that knows that its session is LOST, or SUSPENDED for longer than a session lives, leads nothing.
"""

from __future__ import annotations

from fabric.commands import Confirm, Reserve, Stop
from fabric.effects import (
    Adopted,
    Effect,
    Input,
    InstanceExited,
    InstanceStarted,
    Received,
    Send,
    StopInstance,
    TreeDone,
)
from fabric.messages import NodeCall, RackCall
from fabric.roles.work import split_id
from fabric.sim.checkers.base import Checker
from fabric.sim.host import Process
from zk.tree import SessionState

_ORDERS = (Reserve, Confirm, Stop)
_FOUND = (Adopted, InstanceStarted, InstanceExited)


class Awards(Checker):
    names = ("outage", "leading")

    def decided(self, process: Process, news: Input | None, effects: list[Effect]) -> None:
        if process.told is SessionState.CONNECTED:
            return
        agent = process.agent
        if agent is not None and agent.leads:
            since_s = self.world.clock.now - process.told_at
            patience_s = self.world.settings.session_timeout_s
            if process.told is SessionState.LOST or (since_s > patience_s and news is None):
                self.fail("leading", f"{process.machine.name} leads its rack; its session is {process.told.value}")
        for effect in effects:
            if isinstance(effect, Send) and isinstance(effect.message, RackCall):
                self._ordered(process, effect.message)
            elif isinstance(effect, StopInstance):
                self._stopped(process, news, effect)

    def _ordered(self, process: Process, call: RackCall) -> None:
        orders = [call.everyone, *(one.command for one in call.commands)]
        found = next((order for order in orders if isinstance(order, _ORDERS)), None)
        if found is not None:
            what = f"{type(found).__name__} of {found.deployment}"
            self.fail("outage", f"{process.machine.name} orders {what}; its session is {process.told.value}")

    def _stopped(self, process: Process, news: Input | None, effect: StopInstance) -> None:
        told = isinstance(news, Received) and isinstance(news.message, NodeCall)
        if told or isinstance(news, _FOUND):
            return
        if isinstance(news, TreeDone) and not self.world.ensemble.is_out:
            return
        slot = split_id(effect.instance)
        seen = self.world.view.deployments.get(slot[0]) if slot is not None else None
        if seen is not None and seen.record.spec.stop_after_s:
            return
        why = "a deadline" if news is None else type(news).__name__
        self.fail(
            "outage",
            f"{process.machine.name} stops {effect.instance} because of {why}; its session is {process.told.value}",
        )
