"""`max_per_node` and `max_per_rack`: no plan places an ordinal where that makes one too many.

Only what a write of the record places is judged, with all that the plan has there by then. An ordinal that stays where
it is, or that was leaving a node and stays there after all, is not placed.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from fabric.sim.checkers.base import Checker
from fabric.sim.checkers.view import DEPLOYMENTS, Seen, View, places
from zk.znodes import Change

if TYPE_CHECKING:
    from fabric.sim.world import World


class Limits(Checker):
    names = ("limits",)

    def __init__(self, world: World, view: View) -> None:
        super().__init__(world)
        self._view = view

    def committed(self, zxid: int, session: int, changes: list[Change]) -> None:
        for kind, path in changes:
            if kind == "set" and path.startswith(DEPLOYMENTS) and path.count("/") == 2:
                seen = self._view.deployments[path[len(DEPLOYMENTS) :]]
                record = seen.record
                if (record.max_per_node or record.max_per_rack) and seen.before is not None:
                    if seen.before.plan != record.plan:
                        self._judge(seen)

    def _judge(self, seen: Seen) -> None:
        record, before = seen.record, seen.before
        assert before is not None
        was, stood = places(before.plan), places(before.leaving)
        placed = {n for o, n in seen.plan.items() if n not in (was.get(o), stood.get(o))}
        nodes = Counter(seen.plan.values())
        racks = Counter(self.world.machines[node].rack for node in seen.plan.values())
        for node in sorted(placed):
            rack = self.world.machines[node].rack
            if record.max_per_node and nodes[node] > record.max_per_node:
                what = f"{nodes[node]} on {node}, at most {record.max_per_node} a node"
                self.fail("limits", f"{record.id}: the plan has {what}")
            if record.max_per_rack and racks[rack] > record.max_per_rack:
                what = f"{racks[rack]} in rack {rack}, at most {record.max_per_rack} a rack"
                self.fail("limits", f"{record.id}: the plan has {what}")
