"""When nodes die: nothing is replaced before its time, nor while the brake is on, and what promised to stop has.

"patience": an ordinal that ran when its deployment was last settled leaves the plan, because its node is away, only
`lost_after_s` of true time after that node left ZooKeeper, and only when the replacement of the node was accepted. An
ordinal that is not wanted any more, or leaves a node that is drained, is not replaced.

"brake": no leader accepts the replacement of a node when `brake`, fed with the true state of ZooKeeper, has said no for
DECIDED_S. Leaders know of a node that vanished a moment later than ZooKeeper, and count the members one rack after the
other: a decision that was taken from a count which was right is no breach. So only leaders are judged that were in
touch and running all the while. When clocks are wrong, "accepted within the window" means something else to each
leader: then only those that nobody has accepted yet are counted as vanished.

"alone": with `stop_after_s` an ordinal runs in no two places at all, present or not, but where the record has it as
leaving a drained node. A machine whose agent was dead or stood still at any time since it may have lost touch is
excused: it can't have stopped anything (the README says so).
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from fabric.effects import CallTree, Effect, Input
from fabric.ordinals import parse_ordinals
from fabric.records import Lost, decode
from fabric.roles.brake import brake
from fabric.roles.work import split_id
from fabric.sim.checkers.base import Checker
from fabric.sim.checkers.view import DEPLOYMENTS, MEMBERS, Seen, Slot, View, places
from fabric.sim.driver import Instance
from zk import paths
from zk.tree import SessionState
from zk.znodes import Change

if TYPE_CHECKING:
    from fabric.sim.host import Process
    from fabric.sim.world import World

DECIDED_S = 0.7
ACCEPT = "loss:accept:"


class Patience(Checker):
    names = ("patience", "brake", "alone")

    def __init__(self, world: World, view: View) -> None:
        super().__init__(world)
        self._view = view
        self._absent_since: dict[str, float] = {}
        self._accepted: dict[str, float] = {}
        """Lost node -> when its replacement was accepted by a leader, by true time."""
        self._brake_since: float | None = None

    # --- what happens ------------------------------------------------------------------------------------------------

    def committed(self, zxid: int, session: int, changes: list[Change]) -> None:
        for kind, path in changes:
            if path.startswith(DEPLOYMENTS):
                if kind == "set" and path.count("/") == 2:
                    self._replaced(self._view.deployments[path[len(DEPLOYMENTS) :]])
            elif path.startswith(MEMBERS) and path.count("/") == 4:
                node = path.rpartition("/")[2]
                if kind == "delete":
                    self._absent_since[node] = self.world.clock.now
                else:
                    self._absent_since.pop(node, None)
                self._look()
            elif path.startswith(paths.LOST + "/"):
                self._noted(path.rpartition("/")[2])
                self._look()

    def decided(self, process: Process, news: Input | None, effects: list[Effect]) -> None:
        since = self._brake_since
        if since is None or process.agent is None or not process.agent.leads:
            return
        late_s = 20 * self.world.conditions.zk_s + 3 * self.world.conditions.lag_s
        began = self.world.clock.now - DECIDED_S - late_s
        in_touch = process.told is SessionState.CONNECTED and max(process.told_at, process.well_since) <= began
        if since <= began and in_touch:
            for effect in effects:
                if type(effect) is CallTree and effect.token.startswith(ACCEPT):
                    self._look()  # time alone may have ended it: the window is over
                    if self._brake_since is None:
                        return
                    node = effect.token[len(ACCEPT) :]
                    why = f"the brake is on since {since:.2f} s"
                    self.fail("brake", f"{process.machine.name} accepts that {node} is replaced, and {why}")

    def launched(self, machine: str, instance: Instance) -> None:
        slot = split_id(instance.name)
        if slot is not None:
            self._judge(slot, f"{machine} starts it")

    def sweep(self) -> None:
        for slot in tuple(self._view.running):
            self._judge(slot, "seen in a sweep")

    # --- the brake ---------------------------------------------------------------------------------------------------

    def _noted(self, node: str) -> None:
        data = self.world.ensemble.read(paths.lost(node))
        lost = decode(data, Lost, node) if data is not None else None
        if lost is None or not lost.accepted_ms:
            self._accepted.pop(node, None)
        else:
            self._accepted.setdefault(node, self.world.clock.now)

    def _look(self) -> None:
        ensemble = self.world.ensemble
        noted = ensemble.children(paths.LOST)
        if not noted:  # then nobody need be counted: this is asked whenever one of 100,000 agents registers
            self._brake_since = None
            return
        lost: list[Lost] = []
        right = all(machine.skew_s == 0 for machine in self.world.machines.values())
        for node in noted:
            one = decode(ensemble.read(paths.lost(node)) or b"", Lost, node)
            if node not in self._view.present and (right or not one.accepted_ms):
                lost.append(one)
        members = Counter(self.world.machines[node].rack for node in self._view.present)
        if brake(lost, members, self.world.wall_ms(), self.world.settings) is None:
            self._brake_since = None
        elif self._brake_since is None:
            self._brake_since = self.world.clock.now

    # --- lost_after_s ------------------------------------------------------------------------------------------------

    def _replaced(self, seen: Seen) -> None:
        record, before = seen.record, seen.before
        if before is None or before.plan == record.plan or record.gone or record.state in ("failed", "deleted"):
            return
        moved = frozenset(parse_ordinals(before.moved))
        for ordinal, node in places(before.plan).items():
            if ordinal >= min(before.had, record.count) or ordinal in moved or node in self._view.present:
                continue
            if seen.plan.get(ordinal) == node or seen.leaving.get(ordinal) == node:
                continue
            if self.world.ensemble.stat(paths.drain(node)) is None:
                self._judge_replaced(seen, ordinal, node)

    def _judge_replaced(self, seen: Seen, ordinal: int, node: str) -> None:
        what = f"{seen.record.id}.{ordinal} of {node} is replaced"
        away_s = self.world.clock.now - self._absent_since.get(node, 0.0)
        if node not in self._accepted:
            self.fail("patience", f"{what}, which nobody has accepted; it is away for {away_s:.2f} s")
        elif away_s < seen.record.lost_after_s:
            self.fail("patience", f"{what} after {away_s:.2f} s, expected {seen.record.lost_after_s} s")

    # --- stop_after_s ------------------------------------------------------------------------------------------------

    def _judge(self, slot: Slot, why: str) -> None:
        here = self._view.running.get(slot, {})
        if len(here) < 2:
            return
        seen = self._view.deployments.get(slot[0])
        if seen is None or not seen.record.spec.stop_after_s:
            return
        at = sorted(one for one in here if not self._view.may_leave(slot, one) and not self._is_excused(one))
        if len(at) > 1:
            stops = f"stop_after_s {seen.record.spec.stop_after_s}"
            self.fail("alone", f"{slot[0]}.{slot[1]} ({stops}) runs on {', '.join(at)}: {why}")

    def _is_excused(self, node: str) -> bool:
        process = self.world.machines[node].process
        if process is None or process.agent is None or process.paused:
            return True
        lost_touch = self._absent_since.get(node, self.world.clock.now) - self.world.settings.session_timeout_s
        return process.well_since > lost_touch
