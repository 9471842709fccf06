"""Plans as values: where each ordinal is, what a change takes away from where, and the records that say so. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import msgspec

from fabric.ordinals import format_ordinals, parse_ordinals
from fabric.records import Deployment, Share, State

MAX_REASONS = 40

Place = tuple[str, str]
"""(node, rack)."""


def places_of(shares: Iterable[Share]) -> dict[int, Place]:
    """Ordinal -> place."""
    return {ordinal: (share.node, share.rack) for share in shares for ordinal in share.numbers()}


def plan_of(where: Mapping[int, Place]) -> tuple[Share, ...]:
    """The shares of a plan, sorted by rack and node, from ordinal -> place."""
    return tuple(
        Share(node=node, rack=rack, ordinals=format_ordinals(ordinals))
        for (node, rack), ordinals in sorted(by_place(where).items(), key=lambda item: (item[0][1], item[0][0]))
    )


def by_place(where: Mapping[int, Place]) -> dict[Place, tuple[int, ...]]:
    """Place -> its ordinals, ascending."""
    found: dict[Place, list[int]] = {}
    for ordinal, place in sorted(where.items()):
        found.setdefault(place, []).append(ordinal)
    return {place: tuple(ordinals) for place, ordinals in found.items()}


def whole(record: Deployment) -> dict[Place, tuple[int, ...]]:
    """Everything of the deployment, wherever the record has some of it (see `stopping.Stopping`)."""
    return {(share.node, share.rack): () for share in (*record.plan, *record.leaving, *record.stopping)}


def stops_of(shares: Iterable[Share]) -> dict[Place, tuple[int, ...]]:
    """Place -> the ordinals to stop there."""
    return {(share.node, share.rack): share.numbers() for share in shares}


def shares_of(stops: Mapping[Place, Iterable[int]]) -> tuple[Share, ...]:
    """The same as shares; here an ordinal may be at two places."""
    return tuple(
        Share(node, rack, format_ordinals(ordinals))
        for (node, rack), ordinals in sorted(stops.items(), key=lambda item: (item[0][1], item[0][0]))
    )


@dataclass(frozen=True, slots=True)
class Change:
    """A new plan (`where`, `leaving`), and what of the old one must be stopped where it is (`stop`)."""

    where: dict[int, Place]
    leaving: dict[int, Place]
    stop: dict[Place, tuple[int, ...]]


def without(record: Deployment, leaving: Mapping[int, Place], ordinals: set[int]) -> Change:
    """Take `ordinals` out of the plan. What is leaving a node and loses its other place runs on there; what is not
    wanted any more is stopped there too."""
    where = places_of(record.plan)
    unwanted = {ordinal for ordinal in ordinals if ordinal >= record.count}
    stop = merged(
        by_place({ordinal: place for ordinal, place in where.items() if ordinal in ordinals}),
        by_place({ordinal: place for ordinal, place in leaving.items() if ordinal in unwanted}),
    )
    return Change(
        {ordinal: place for ordinal, place in where.items() if ordinal not in ordinals},
        {ordinal: place for ordinal, place in leaving.items() if ordinal not in unwanted},
        stop,
    )


def reverted(record: Deployment, leaving: Mapping[int, Place]) -> Change:
    """Only what was settled before; what was about to leave a node, and has no other place, stays there. The rest is
    stopped wherever it is: what was leaving is in two places."""
    where = {**leaving, **places_of(record.plan)}
    kept = {ordinal: place for ordinal, place in where.items() if ordinal < record.had}
    stay = {ordinal: place for ordinal, place in leaving.items() if kept.get(ordinal) not in (None, place)}
    beyond = (
        by_place({ordinal: place for ordinal, place in some.items() if ordinal >= record.had})
        for some in (places_of(record.plan), leaving)
    )
    return Change(kept, stay, merged(*beyond, by_place(stay)))


def merged(*all_stops: Mapping[Place, Iterable[int]]) -> dict[Place, tuple[int, ...]]:
    found: dict[Place, set[int]] = {}
    for stops in all_stops:
        for place, ordinals in stops.items():
            found.setdefault(place, set()).update(ordinals)
    return {place: tuple(sorted(ordinals)) for place, ordinals in found.items()}


def lacking(record: Deployment, placed: int, count: int) -> int:
    """How many of the ordinals that ran, or should, are without a place when `placed` of `count` have one."""
    return max(0, min(record.placed + record.lacking, count) - placed) if record.had else 0


def replanned(
    record: Deployment,
    where: Mapping[int, Place],
    leaving: Mapping[int, Place],
    stopping: Mapping[Place, Iterable[int]],
    fence: tuple[int, int],
    now_ms: int,
) -> Deployment:
    """The record with another plan. `fence`: (epoch, step) of the commands that will follow it. What was to leave a
    node, and got its place there again, does not leave."""
    had, before = min(record.had, record.count), places_of(record.plan)
    known = set(parse_ordinals(record.moved))
    moved = {one for one in where if one < had and (one in known or before.get(one) != where[one])}
    return msgspec.structs.replace(
        record,
        state="starting",
        plan=plan_of(where),
        leaving=plan_of({ordinal: place for ordinal, place in leaving.items() if where.get(ordinal) != place}),
        stopping=shares_of(stopping),
        epoch=fence[0],
        step=fence[1],
        had=had,
        moved=format_ordinals(moved),
        lacking=lacking(record, len(where), record.count),
        updated_ms=now_ms,
    )


def settled(
    record: Deployment,
    state: State,
    reasons: tuple[str, ...],
    plan: tuple[Share, ...],
    count: int,
    left: Collection[Place],
    fence: tuple[int, int],
    now_ms: int,
) -> Deployment:
    """The record at rest, with `count` as what is wanted from now on. `left`: who did not say that what had to stop
    there has: it stays in the record as `stopping`."""
    dropped = () if plan else record.plan
    stops = merged(stops_of(record.stopping), stops_of(record.leaving), stops_of(dropped))
    placed = sum(len(share.numbers()) for share in plan)
    return msgspec.structs.replace(
        record,
        state=state,
        settled=record.generation,
        plan=plan,
        leaving=(),
        stopping=shares_of({place: ordinals for place, ordinals in stops.items() if place in left}),
        moved="",
        count=count,
        min_count=min(record.min_count, count),
        had=count if state == "running" else 0,
        lacking=lacking(record, placed, count) if state == "running" else 0,
        smaller=(),
        reason=reasons[0][:500] if reasons else "",
        reasons=tuple(reason[:300] for reason in reasons[1:MAX_REASONS]),
        epoch=fence[0],
        step=fence[1],
        updated_ms=now_ms,
    )
