"""What a coordinator notes of each search for places, exactly, so that `replay` can do it again from the trace.

A search calls `place` one or more times (placings). Each is noted with all that `place` was given: the ordinals that
had no place, and the offers; of these the first placing has all, a later one those that are different since. What
the nodes were asked for is noted too, and what was granted of it, and at the end the plan that was written.

Bounded: MAX_PLACINGS a search, MAX_OFFERS nodes, MAX_CHANGES offers in all. When there is no room for one more, a
placing that led to no question (the request waited for others) makes room: its changes go into the next, so nothing of
the rest is lost. Only when none is left, or there are too many nodes, something is left out, and `omitted` says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fabric.ordinals import format_ordinals
from fabric.records import Share
from fabric.roles.placement import NodeOffer, Placement, Wish
from fabric.roles.plans import Place
from fabric.roles.trace import MAX_CHANGES, MAX_OFFERS, MAX_PLACINGS, MAX_SEARCHES, OfferSeen, PlacingSeen, SearchSeen


@dataclass(slots=True)
class _Placing:
    missing: str
    changed: dict[str, OfferSeen | None]
    """None: the node offers no more."""
    short: int
    given: tuple[Share, ...] = ()
    granted: str = ""


@dataclass(slots=True)
class _Search:
    wish: Wish
    placings: list[_Placing] = field(default_factory=list)
    offers: dict[str, OfferSeen] = field(default_factory=dict)
    """As they were at the last placing."""
    last: _Placing | None = None
    """The last one, if it was noted."""
    left_out: set[str] = field(default_factory=set)
    waits_omitted: int = 0
    omitted: int = 0
    kept: tuple[Share, ...] = ()
    plan: tuple[Share, ...] = ()

    def make_room(self, more: int) -> bool:
        """For one more placing with `more` changed offers. False: there is none."""
        while len(self.placings) >= MAX_PLACINGS or more + sum(len(one.changed) for one in self.placings) > MAX_CHANGES:
            waits = (index for index, one in enumerate(self.placings[:-1]) if not one.given)
            index = next(waits, -1)
            if index < 0:
                return False
            gone = self.placings.pop(index)
            following = self.placings[index]
            following.changed = {**gone.changed, **following.changed}
            self.waits_omitted += 1
        return True


class Placings:
    """One run's. Calls come in the order of the work: begin, then placed and perhaps granted, again, then planned."""

    def __init__(self) -> None:
        self._searches: list[_Search] = []
        self._omitted = 0

    def begin(self, wish: Wish) -> None:
        """A search; its wish's count is told with each placing. The oldest is forgotten when there are too many."""
        self._searches.append(_Search(wish))
        if len(self._searches) > MAX_SEARCHES:
            del self._searches[0]
            self._omitted += 1

    def placed(self, missing: Iterable[int], offers: Sequence[NodeOffer], placement: Placement) -> None:
        search = self._searches[-1]
        ordinals = tuple(missing)
        won = {one.node for one in placement.given}
        seen: dict[str, OfferSeen] = {}
        for offer in sorted(offers, key=lambda one: one.node not in won):  # winners are the last to be left out
            if len(seen) < MAX_OFFERS:
                seen[offer.node] = _seen(offer)
            elif offer.node not in search.left_out:
                search.left_out.add(offer.node)
                search.omitted += 1
        changed: dict[str, OfferSeen | None] = {
            node: offer for node, offer in seen.items() if search.offers.get(node) != offer
        }
        changed.update((node, None) for node in search.offers if node not in seen)
        if not search.make_room(len(changed)):
            search.omitted += 1
            search.last = None
            return
        search.offers = seen
        search.last = _Placing(format_ordinals(ordinals), changed, placement.short)
        search.placings.append(search.last)

    def granted(self, given: Mapping[Place, tuple[int, ...]], granted: Iterable[int]) -> None:
        """The last placing was asked for, and of this so much was granted."""
        last = self._searches[-1].last
        if last is not None:
            last.given = tuple(Share(node, rack, format_ordinals(mine)) for (node, rack), mine in given.items())
            last.granted = format_ordinals(granted)

    def planned(self, kept: tuple[Share, ...], plan: tuple[Share, ...]) -> None:
        """`plan` is written; `kept` was there before this search."""
        self._searches[-1].kept, self._searches[-1].plan = kept, plan

    def seen(self) -> tuple[tuple[SearchSeen, ...], int]:
        """(the searches that placed anything, in order, how many were forgotten)."""
        searches = tuple(
            SearchSeen(
                salt=one.wish.salt,
                policy=one.wish.policy,
                max_per_node=one.wish.max_per_node,
                max_per_rack=one.wish.max_per_rack,
                placings=tuple(_placing_seen(placing) for placing in one.placings),
                kept=one.kept,
                plan=one.plan,
                waits_omitted=one.waits_omitted,
                omitted=one.omitted,
            )
            for one in self._searches
            if one.placings or one.omitted
        )
        return searches, self._omitted


def _placing_seen(placing: _Placing) -> PlacingSeen:
    return PlacingSeen(
        missing=placing.missing,
        offers=tuple(offer for _, offer in sorted(placing.changed.items()) if offer is not None),
        gone=tuple(sorted(node for node, offer in placing.changed.items() if offer is None)),
        short=placing.short,
        given=placing.given,
        granted=placing.granted,
    )


def _seen(offer: NodeOffer) -> OfferSeen:
    return OfferSeen(
        node=offer.node,
        rack=offer.rack,
        count=offer.count,
        used=offer.used,
        utilisation=offer.utilisation,
        cordoned=offer.cordoned,
        capacity=offer.capacity,
        held=offer.held,
        oldest=offer.oldest,
        short=offer.short,
    )
