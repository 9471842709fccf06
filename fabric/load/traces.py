"""Traces of some of the requests: how long each step of the flow took, messages, ZooKeeper's reads and writes.

Sampled evenly over the time of a run: at most `most`, the next not before its part of the time has passed; each is one
more question to the API, after the deployment's end and before anything else is asked of it.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from fabric.load.history import Clock
from fabric.load.http import Connections, NoAnswer
from fabric.load.latency import quantile
from fabric.load.results import Step, Traced
from fabric.roles.trace import STEPS, Run, Trace

NEGOTIATION = (3, 6)


@dataclass
class Sampler:
    """Takes a sample in each of `most` parts of the window from `from_s` on."""

    connections: Connections
    clock: Clock
    most: int
    from_s: float
    every_s: float
    runs: list[Run] = field(default_factory=list)
    missed: int = 0
    _next_s: float = 0.0

    @classmethod
    def over(cls, connections: Connections, clock: Clock, most: int, from_s: float, to_s: float) -> Sampler:
        return cls(connections, clock, most, from_s, (to_s - from_s) / max(most, 1), _next_s=from_s)

    async def sample(self, deployment: str) -> None:
        """Perhaps."""
        now = self.clock.now()
        if now < self._next_s or len(self.runs) >= self.most:
            return
        self._next_s = max(self._next_s + self.every_s, now)
        try:
            answer = await self.connections.ask("GET", f"/v1/deployments/{deployment}/trace")
            self.runs += msgspec.json.decode(answer.content, type=Trace).runs[-1:] if answer.good else ()
        except (NoAnswer, msgspec.DecodeError):
            self.missed += 1


def steps(runs: Sequence[Run]) -> tuple[Step, ...]:
    found: dict[int, list[float]] = {}
    for run in runs:
        took: dict[int, float] = {}
        for span in run.spans:
            took[span.step] = took.get(span.step, 0.0) + span.took_ms
        for step, ms in took.items():
            found.setdefault(step, []).append(ms)
    return tuple(
        Step(step, STEPS.get(step, ""), len(each), statistics.median(each), quantile(sorted(each), 0.9))
        for step, each in sorted(found.items())
    )


def between_ms(run: Run, first: int, last: int) -> float:
    """From the begin of the first of these steps to the end of the last; 0 when there is none of them."""
    spans = [span for span in run.spans if first <= span.step <= last]
    if not spans:
        return 0.0
    return max(span.after_ms + span.took_ms for span in spans) - min(span.after_ms for span in spans)


def traced(runs: Sequence[Run]) -> Traced | None:
    """None: no trace was seen."""
    if not runs:
        return None
    negotiations = sorted(between_ms(run, *NEGOTIATION) for run in runs)
    return Traced(
        len(runs),
        steps(runs),
        statistics.median(negotiations),
        quantile(negotiations, 0.9),
        statistics.median(run.messages for run in runs),
        statistics.median(run.zookeeper_writes for run in runs),
        statistics.median(run.zookeeper_reads for run in runs),
    )
