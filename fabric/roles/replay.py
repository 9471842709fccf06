"""Placing again, from a trace: the recorded wishes and offers go into the same `place`, and must lead to the same plan.

`place` is pure, so a run whose trace kept everything is decided again anywhere, with nothing but the trace: which nodes
were asked for which ordinals, placing by placing, and the plan. What other nodes did (which offers came, what was
granted) is input; what is compared is what the coordinator made of it. A difference means that the trace is not of this
run, or that this version of `place` decides otherwise than the one that ran there.

The same walk tells who won and who lost (`outcomes`), for people.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fabric.ordinals import parse_ordinals
from fabric.roles.placement import NodeOffer, Wish, deal, place
from fabric.roles.plans import Place, places_of
from fabric.roles.trace import OfferSeen, PlacingSeen, Run, SearchSeen, Trace

Where = dict[int, Place]
"""Ordinal -> (node, rack)."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """`rounds` placings came out the same. `impossible`: why the trace is not enough, or empty. `difference`: the first
    thing that came out otherwise; empty when all was the same. `planned`: a plan was compared."""

    rounds: int
    planned: bool = False
    impossible: str = ""
    difference: str = ""

    @property
    def same(self) -> bool:
        return not self.impossible and not self.difference


@dataclass(frozen=True, slots=True)
class Outcome:
    """`given` ordinals of the plan came of this offer; `why` not more."""

    offer: OfferSeen
    given: int
    why: str


def pick(trace: Trace, number: int = 0) -> tuple[int, Run] | None:
    """A run and its number (1: the oldest): run `number`, or for 0 the last that placed anything. None: no such."""
    runs = list(enumerate(trace.runs, 1))
    found = [one for one in runs if one[0] == number or (not number and (one[1].searches or one[1].searches_omitted))]
    return found[-1] if found else None


def replay(run: Run) -> Replayed:
    """All searches of a run that its trace has kept, in order, up to the first difference."""
    rounds, planned = 0, False
    if not run.searches:
        kept = f"; {run.searches_omitted} searches for places were left out" if run.searches_omitted else ""
        return Replayed(0, impossible=f"this run's trace has no placement{kept}")
    for number, search in enumerate(run.searches, run.searches_omitted + 1):
        of = f"search {number}, " if len(run.searches) > 1 else ""
        if search.omitted:
            what = f"{of}{search.omitted} offers or rounds were left out of the trace, for its size"
            return Replayed(rounds, planned, impossible=what)
        places: Where = {}
        for index, (placing, offers) in enumerate(_walk(search), 1):
            difference = _placing_differs(search, placing, offers)
            if difference:
                return Replayed(rounds, planned, difference=f"{of}round {index}: {difference}")
            _reserve(places, placing)
            rounds += 1
        if search.plan:
            planned = True
            difference = _differs(places_of(search.plan), {**places_of(search.kept), **places})
            if difference:
                return Replayed(rounds, planned, difference=f"{of}plan: {difference}")
    return Replayed(rounds, planned)


def outcomes(search: SearchSeen) -> list[Outcome]:
    """Of each node that offered anything: its offer when it was asked last, or the last one, and what came of it."""
    told: dict[str, OfferSeen] = {}
    places: Where = {}
    asked: set[str] = set()
    for placing, offers in _walk(search):
        _reserve(places, placing)
        for share in placing.given:
            if share.node in offers:
                told[share.node] = offers[share.node]
                asked.add(share.node)
        told.update((node, offer) for node, offer in offers.items() if node not in asked)
    given: dict[str, int] = {}
    for node, _rack in places.values() if search.plan else ():
        given[node] = given.get(node, 0) + 1
    return [
        Outcome(offer, given.get(node, 0), _why(search, offer, given.get(node, 0)))
        for node, offer in sorted(told.items())
    ]


def _why(search: SearchSeen, offer: OfferSeen, given: int) -> str:
    if offer.cordoned:
        return "cordoned"
    if offer.count == 0:
        return f"out of {offer.short}" if offer.short else "silent, or left out"
    if not search.plan:
        return "too little in all"
    return "taken whole" if given == offer.count else "enough elsewhere, by the policy"


def _walk(search: SearchSeen) -> Iterator[tuple[PlacingSeen, dict[str, OfferSeen]]]:
    """Each placing with all offers that there were. (The same dict, changed from one to the next.)"""
    offers: dict[str, OfferSeen] = {}
    for placing in search.placings:
        offers.update((offer.node, offer) for offer in placing.offers)
        for node in placing.gone:
            offers.pop(node, None)
        yield placing, offers


def _reserve(places: Where, placing: PlacingSeen) -> None:
    """What of the placing was granted; what is looked for again was given back before."""
    for ordinal in parse_ordinals(placing.missing):
        places.pop(ordinal, None)
    asked = places_of(placing.given)
    places.update((ordinal, asked[ordinal]) for ordinal in parse_ordinals(placing.granted) if ordinal in asked)


def _placing_differs(search: SearchSeen, placing: PlacingSeen, offers: dict[str, OfferSeen]) -> str:
    missing = parse_ordinals(placing.missing)
    wish = Wish(len(missing), search.policy, search.max_per_node, search.max_per_rack, search.salt)
    placement = place(wish, [_offer(offer) for offer in offers.values()])
    if placement.short != placing.short:
        return f"{placing.short} of {wish.count} found no place by the trace, {placement.short} by the replay"
    if not placing.given:
        return ""
    dealt = deal(missing, placement)
    return _differs(places_of(placing.given), {ordinal: place for place, mine in dealt.items() for ordinal in mine})


def _differs(recorded: Where, found: Where) -> str:
    """The first ordinal that is elsewhere."""
    for ordinal in sorted(recorded.keys() | found.keys()):
        if recorded.get(ordinal) != found.get(ordinal):
            was, now = (_named(where.get(ordinal)) for where in (recorded, found))
            return f"ordinal {ordinal} is on {was} by the trace, on {now} by the replay"
    return ""


def _named(place: Place | None) -> str:
    return f"{place[0]} of {place[1]}" if place else "no node"


def _offer(seen: OfferSeen) -> NodeOffer:
    return NodeOffer(
        seen.node, seen.rack, seen.count, seen.used, seen.utilisation, seen.cordoned, seen.short, seen.capacity,
        seen.held, seen.oldest,
    )  # fmt: skip
