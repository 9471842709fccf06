"""What happened in the window of a run, from its history. Pure.

A request belongs to the window when it was *due* in it. Its times count from then on. One that was never sent, or has
not ended, counts with what it had waited by the end (latency.py says why). What ended in the window is counted by the
second, whenever it was due.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fabric.load.asking import GOOD
from fabric.load.history import NO_ANSWER, Asked, Kind
from fabric.load.latency import Latency, summary
from fabric.load.results import Failure, Second

MAX_FAILURES = 10
"""Kinds of failures that are told apart; the rest are counted together."""
KINDS: tuple[Kind, ...] = ("create", "scale", "delete")
ACCEPTED, SETTLED = "accepted", "settled"


@dataclass(frozen=True, slots=True)
class Window:
    """By the run's clock. `over_s`: when the last look was, at what was still open."""

    from_s: float
    to_s: float
    over_s: float

    def holds(self, at_s: float) -> bool:
        return self.from_s <= at_s < self.to_s

    @property
    def length_s(self) -> float:
        return max(self.to_s - self.from_s, 1e-9)


def good(one: Asked) -> bool:
    """It ended, and did what it was for."""
    return one.end is not None and one.end.state == GOOD[one.kind]


def whole(one: Asked) -> bool:
    """And all of its instances run."""
    return good(one) and one.end is not None and (one.kind == "delete" or one.end.placed >= one.last.count)


def latencies(asked: Sequence[Asked], unsent_s: Sequence[float], window: Window) -> dict[str, Latency]:
    """By kind and what is waited for. Refused requests are no samples: they are failures. `unsent_s`: when each of
    those was due that was never sent; they would have been creates."""
    found: dict[str, Latency] = {}
    waited = [window.over_s - due_s for due_s in unsent_s if window.holds(due_s)]
    for kind in KINDS:
        these = [one for one in asked if one.kind == kind and window.holds(one.due_s)]
        never = waited if kind == "create" else []
        if not these and not never:
            continue
        answered = [one.last.answered_s - one.due_s for one in these if one.last.accepted]
        mute = [window.over_s - one.due_s for one in these if one.last.again]
        found[f"{kind} {ACCEPTED}"] = summary(answered, [*mute, *never])
        ended = [one.end.at_s - one.due_s for one in these if one.end is not None and good(one)]
        open_ones = [one for one in these if one.end is None and (one.last.accepted or one.last.again)]
        going = [window.over_s - one.due_s for one in open_ones]
        found[f"{kind} {SETTLED}"] = summary(ended, [*going, *never])
    return found


def lateness(asked: Iterable[Asked], window: Window) -> Latency:
    return summary([one.sent_s - one.due_s for one in asked if window.holds(one.due_s)])


def ended(asked: Iterable[Asked], window: Window) -> Counter[str]:
    """What ended well in the window, by kind."""
    return Counter(one.kind for one in asked if good(one) and one.end is not None and window.holds(one.end.at_s))


def seconds(asked: Sequence[Asked], window: Window) -> tuple[Second, ...]:
    """From the first request to the window's end, one for each, also where nothing ended; whole ones only, at both
    ends, unless the window is shorter than that."""
    counts: dict[int, Counter[str]] = {}
    for one in asked:
        at_s = one.end.at_s if one.end is not None else one.last.answered_s
        if at_s < window.to_s and (one.end is not None or not one.last.accepted):
            named = one.kind if good(one) else "failed"
            counts.setdefault(math.floor(at_s - window.from_s), Counter())[named] += 1
    first = math.ceil(min((one.due_s for one in asked), default=window.from_s) - window.from_s)
    last = max(1, math.floor(window.length_s))
    return tuple(Second(at, **counts.get(at, Counter())) for at in range(first, last))


def failures(asked: Iterable[Asked]) -> tuple[Failure, ...]:
    """Of the whole run, warm-up included: the most frequent first."""
    found: dict[tuple[str, str], list[str]] = {}
    for one in asked:
        if (told := failure(one)) is not None:
            found.setdefault(told, []).append(one.deployment or f"request {one.number}")
    ordered = sorted(found.items(), key=lambda item: -len(item[1]))
    shown = [Failure(what, why, len(names), names[0]) for (what, why), names in ordered[:MAX_FAILURES]]
    if rest := sum(len(names) for _, names in ordered[MAX_FAILURES:]):
        shown.append(Failure("others", f"{len(ordered) - MAX_FAILURES} further reasons", rest, ""))
    return tuple(shown)


def failure(one: Asked) -> tuple[str, str] | None:
    """What became of a request that did not do what it was for, and why; None: it did."""
    if one.last.status == NO_ANSWER or one.last.again:
        return "lost", one.last.detail or f"HTTP status {one.last.status}"
    if not one.last.accepted:
        return "refused", f"{one.last.status} {one.last.detail}"
    if one.end is None:
        return "not at rest", "it was accepted, and not at rest by the end of the run"
    if one.end.state != GOOD[one.kind]:
        return "failed", f"{one.end.state}: {one.end.reason}" if one.end.reason else one.end.state
    if not whole(one):
        return "short", f"{one.end.placed} of {one.last.count} placed: {one.end.reason}"
    return None
