"""Who ended though no fault ended it: agents and the API are not to. Pure: states in, findings out.

A process that ends by itself comes back with the healing at the latest, so in the end nothing is missing: it has to be
noted when it happens. Who is killed did not do that by itself. What a process does to itself at an armed step is told a
moment later than it is seen, so an end counts only when it is still nobody's in a later look (PATIENCE_S).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from fabric.chaos.verdict import Finding
from fabric.local.state import LocalState
from fabric.net.rules import API

PATIENCE_S = 1.0
KILLED = "killed by SIGKILL"


@dataclass
class Deaths:
    """`findings`: one for each end of a process."""

    findings: list[Finding] = field(default_factory=list)
    _seen: dict[tuple[str, int], float] = field(default_factory=dict)
    _told: set[tuple[str, int]] = field(default_factory=set)

    def look(self, state: LocalState, ours: Collection[str], at_s: float) -> list[str]:
        """`ours`: whom a fault holds, or has hit. The names of those that are found now."""
        found: list[str] = []
        ended = {view.node.name: (view.process, view.ended) for view in state.nodes if view.ended not in ("", KILLED)}
        if state.api.ended not in ("", KILLED):
            ended[API] = (state.api.process, state.api.ended)
        here = {(name, process.pid if process else 0) for name, (process, _) in ended.items() if name not in ours}
        self._seen = {key: self._seen.get(key, at_s) for key in here}
        for key, since_s in self._seen.items():
            if at_s - since_s >= PATIENCE_S and key not in self._told:
                self._told.add(key)
                found.append(key[0])
                who = "the API" if key[0] == API else f"the agent of {key[0]}"
                self.findings.append(Finding("durable", since_s, f"{who} ended by itself: {ended[key[0]][1]}"))
        return found
