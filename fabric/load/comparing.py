"""Two results side by side: what got better, what got worse, and in what the two runs were not alike. Pure.

Each figure has a direction. *Worse* is what is off by more than the given part in the wrong direction, and by more
than it can be measured (LEAST); a count that was 0 and is not any more is worse if less is better. Figures that only
one of the two has are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

from fabric.load.results import Result

Better = Literal["more", "less"]
LEAST = {"ms": 1.0, "ms CPU": 0.1, "MiB": 1.0}
"""What differs by less is the same: traces count whole milliseconds, CPU is told in ticks of 10 ms a process."""


class Row(msgspec.Struct, frozen=True):
    """`ratio`: after to before; None: before was 0."""

    figure: str
    unit: str
    better: Better
    before: float
    after: float
    ratio: float | None
    worse: bool


class Difference(msgspec.Struct, frozen=True):
    """A setting, or the machine, that is not the same in both."""

    setting: str
    before: str
    after: str


class Comparison(msgspec.Struct, frozen=True):
    before: str
    after: str
    worse_part: float
    differences: tuple[Difference, ...]
    rows: tuple[Row, ...]

    @property
    def worse(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.worse)


Figure = tuple[str, str, Better, float]


def compare(before: Result, after: Result, names: tuple[str, str], worse_part: float) -> Comparison:
    """`worse_part`: 0.1 for 10 %."""
    was = {name: value for name, _, _, value in figures(before)}
    rows = tuple(
        _row(name, unit, better, was[name], value, worse_part)
        for name, unit, better, value in figures(after)
        if name in was
    )
    return Comparison(*names, worse_part, tuple(differences(before, after)), rows)


def figures(one: Result) -> Iterator[Figure]:
    """What of a result can be better or worse."""
    for kind, value in one.per_s.items():
        yield f"{kind}: requests a second", "/s", "more", value
    for name, found in one.latencies.items():
        for part, value in (("p50", found.p50_ms), ("p90", found.p90_ms), ("p99", found.p99_ms)):
            yield f"{name} {part}", "ms", "less", value
    if one.traced is not None:
        yield "negotiation (steps 3 to 6), median", "ms", "less", one.traced.negotiation_ms
        for step in one.traced.steps:
            yield f"step {step.step}, median", "ms", "less", step.median_ms
        yield "messages a request", "", "less", one.traced.messages
        yield "ZooKeeper writes a request", "", "less", one.traced.zookeeper_writes
        yield "ZooKeeper reads a request", "", "less", one.traced.zookeeper_reads
    for group in one.groups:
        yield f"CPU a request, {group.role}", "ms CPU", "less", group.cpu_ms_request
    for group in one.groups:
        if group.pss_mib > 0:
            yield f"memory, {group.role}", "MiB", "less", group.pss_mib
    if one.counted.zookeeper_transactions is not None:
        yield "ZooKeeper transactions a request", "", "less", one.counted.zookeeper_transactions
    yield "failed requests", "", "less", float(sum(failure.times for failure in one.failures))
    yield "requests that were due and never sent", "", "less", float(one.unsent)
    yield "promises broken", "", "less", float(sum(not check.holds for check in one.checks))


def _row(name: str, unit: str, better: Better, before: float, after: float, worse_part: float) -> Row:
    ratio = after / before if before else None
    if better == "more":
        worse = after < before * (1 - worse_part)
    else:
        worse = after > before * (1 + worse_part) and after - before >= LEAST.get(unit, 0.0)
    return Row(name, unit, better, before, after, None if ratio is None else round(ratio, 3), worse)


def differences(before: Result, after: Result) -> Iterator[Difference]:
    """In settings, fabric and machine: with these, ratios may say more about them than about the code."""
    first, second = _settings(before), _settings(after)
    for name in {**first, **second}:
        if first.get(name) != second.get(name):
            yield Difference(name, first.get(name, "-"), second.get(name, "-"))


def _settings(one: Result) -> dict[str, str]:
    plan = {f"plan.{name}": str(value) for name, value in msgspec.to_builtins(one.plan).items() if name != "traces"}
    shape = {f"fabric.{name}": str(value) for name, value in msgspec.to_builtins(one.shape or {}).items()}
    return {"machine": one.machine, "agents": str(one.agents), **shape, **plan, "interrupted": str(one.interrupted)}
