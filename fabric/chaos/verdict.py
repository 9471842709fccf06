"""What a run is judged by: the promises, and what was found against them.

A promise is *held* when it was looked at and nothing was found, *broken* when something was, and *not tried* when the
run did nothing that could have broken it (no outage, no stranger). Of many findings of one promise the first MAX_SHOWN
are kept and the others are counted: the first is nearly always the cause.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

Promise = Literal["capacity", "exactly", "durable", "orphans", "redundancy", "outage", "strangers", "expected"]

PROMISES: dict[Promise, str] = {
    "capacity": "no node runs more than it has",
    "exactly": "each ordinal runs once among the nodes that are present, and in the end all that are wanted",
    "durable": "every request is answered as documented, and what was accepted ends, with a reason",
    "orphans": "nothing runs that nobody wants there",
    "redundancy": "every image has two verified holders in different racks again, and no rotten byte is used",
    "outage": "without ZooKeeper nothing is killed, replaced or awarded; requests get 503 with Retry-After",
    "strangers": "what is no message of the fabric changes nothing",
    "expected": "what the scenario expects besides",
}
"""In the order of the design's list."""

MAX_SHOWN = 10
Grade = Literal["held", "broken", "not tried"]


class Finding(msgspec.Struct, frozen=True, order=True):
    """`at_s`: seconds since the run began; what is wrong in the end has the time of the last look."""

    promise: Promise
    at_s: float
    text: str


class Judged(msgspec.Struct, frozen=True):
    """One promise. `found`: how many findings; `first`: the earliest of them."""

    promise: Promise
    grade: Grade
    found: int
    first: tuple[Finding, ...]


class Verdict(msgspec.Struct, frozen=True):
    judged: tuple[Judged, ...]

    @property
    def holds(self) -> bool:
        return all(one.grade != "broken" for one in self.judged)


def verdict(findings: Iterable[Finding], tried: Iterable[Promise]) -> Verdict:
    """`tried`: the promises that the run looked at; one with findings counts as tried."""
    looked_at = frozenset(tried)
    found: dict[Promise, list[Finding]] = {promise: [] for promise in PROMISES}
    for finding in sorted(set(findings), key=lambda one: (one.at_s, one.text)):
        found[finding.promise].append(finding)
    judged = []
    for promise, these in found.items():
        grade: Grade = "broken" if these else ("held" if promise in looked_at else "not tried")
        judged.append(Judged(promise, grade, len(these), tuple(these[:MAX_SHOWN])))
    return Verdict(tuple(judged))
