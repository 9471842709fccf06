"""Whether any node ran more than it has, while the load was on.

Theory of operation. From the answer that says a deployment runs until its delete (or scale) is sent, every instance of
its plan surely runs where the plan says. Adding these up by node, as answers come and deletes go, gives what each node
ran at least at that moment; the most of it, compared with what the node has, shows over-commitment without asking the
nodes anything. Instances that are starting or stopping are not counted, so what is found is never a false alarm; what
the audit and the fabric's own checkers see besides is theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fabric.resources import Resources


@dataclass
class Books:
    """`most`: node -> the most instances at a time. `miscounted`: deployments said to run with another count than
    asked for."""

    now: dict[str, int] = field(default_factory=dict)
    most: dict[str, int] = field(default_factory=dict)
    miscounted: list[str] = field(default_factory=list)
    _plans: dict[str, Mapping[str, int]] = field(default_factory=dict)

    def runs(self, deployment: str, plan: Mapping[str, int], wanted: int) -> None:
        self.leaves(deployment)
        self._plans[deployment] = plan
        if sum(plan.values()) != wanted:
            self.miscounted.append(deployment)
        for node, count in plan.items():
            total = self.now[node] = self.now.get(node, 0) + count
            if total > self.most.get(node, 0):
                self.most[node] = total

    def leaves(self, deployment: str) -> None:
        for node, count in self._plans.pop(deployment, {}).items():
            self.now[node] -= count

    def overcommitted(self, need: Resources, nodes: Mapping[str, Resources]) -> list[str]:
        """Nodes that ran more instances of this need than their total holds, each with how."""
        found = []
        for node, count in sorted(self.most.items()):
            holds = nodes[node].holds(need) if node in nodes else 0
            if count > holds:
                found.append(f"{node} ran {count} instances at a time, and holds {holds}")
        return found
