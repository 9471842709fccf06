"""The smallest fix for a request that can't be placed: what would do, and what that is in one sentence. Pure.

There are six single changes; a `Kind` names each. Some are the asker's (fewer instances, another flavor, a higher
limit), one takes time (another request's reservations end), one is an operator's (uncordon nodes). `advise` says which
of them would do, in this order; only when none does alone it looks for two together, then for three, and so on.

Each is first tried at its widest (no limit, nobody's reservations, nothing cordoned): does all that is wanted fit then?
If so it is made as small as it can be: the fewest nodes, the lowest limit, no deployment that need not be waited for,
the largest count, the flavor that is nearest to the wanted one. So an advice that is taken works, and less would not.

How many fit: a rack holds what its nodes hold together, at most `max_per_rack`; a node what its free resources hold,
at most `max_per_node`. `place` finds room for exactly so many, whatever the policy. O(offers) a look, and about 100
looks in the worst case: when nothing does alone, and every kind is there to be tried.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

from fabric.records import MAX_SIZES, Deployment, Size
from fabric.resources import DIMENSIONS, Resources
from fabric.roles.placement import NodeOffer, Wish

Kind = Literal["fewer", "flavor", "max_per_node", "max_per_rack", "wait", "uncordon"]
KINDS: tuple[Kind, ...] = ("fewer", "flavor", "max_per_node", "max_per_rack", "wait", "uncordon")
MAX_ADVICE = 6
MAX_NODES = 100
"""To uncordon: who would have to uncordon more needs another advice."""
MAX_WAIT_FOR = 16
"""Deployments whose reservations are looked at."""
NAMES_TOLD = 8
UNLIMITED = 1 << 53


@dataclass(frozen=True, slots=True)
class Case:
    """What is missing. `wish.count` more of `need` must fit, beside the `have` that are there and stay. `flavors` are
    others to think of, the nearest first (`smaller`); `kinds`: what can be changed at all."""

    wish: Wish
    need: Resources
    offers: Sequence[NodeOffer]
    flavors: tuple[Size, ...] = ()
    have: int = 0
    kinds: tuple[Kind, ...] = KINDS


@dataclass(frozen=True, slots=True)
class Advice:
    """What would do: all of it together, and a field says something only if its kind is in `kinds`. `count`: so many
    instances in all. `wait_for`: deployments whose reservations must end. `uncordon`: nodes."""

    kinds: tuple[Kind, ...]
    sentence: str
    count: int = 0
    flavor: str = ""
    max_per_node: int = 0
    max_per_rack: int = 0
    wait_for: tuple[str, ...] = ()
    uncordon: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Change:
    """A world to look at. Limits of 0 mean none."""

    need: Resources
    max_per_node: int
    max_per_rack: int
    without: frozenset[str] = frozenset()
    uncordoned: frozenset[str] = frozenset()


def smaller(wanted: Resources, sizes: Mapping[str, Resources]) -> tuple[Size, ...]:
    """The sizes that need less than `wanted` in some dimension, the nearest first: those that give most of what was
    wanted. At most MAX_SIZES; the last is then the furthest of all."""

    def likeness(size: Resources) -> float:
        pairs: list[tuple[int, int]] = [(getattr(size, each), getattr(wanted, each)) for each in DIMENSIONS]
        return sum(min(1.0, has / wants) for has, wants in pairs if wants)

    less = {
        name: size
        for name, size in sizes.items()
        if any(getattr(size, dimension) < getattr(wanted, dimension) for dimension in DIMENSIONS)
    }
    names = sorted(less, key=lambda name: (-likeness(less[name]), str(less[name]), name))
    if len(names) > MAX_SIZES:
        names = [*names[: MAX_SIZES - 1], names[-1]]
    return tuple(Size(name, less[name].vcpus, less[name].memory_mib, less[name].disk_mib) for name in names)


def case_of(
    record: Deployment, wish: Wish, reserved: Mapping[str, int], offers: Iterable[NodeOffer], least: int
) -> Case:
    """The case of a search that ends with too few places. `wish.count`: ordinals without a place; `reserved`: node ->
    how many places of this search it has. `least` of all places that it looked for would have been enough; 0: it is
    content with what it got, and only wants to know what the others lack. So does one that heals or leaves a node."""
    need = record.spec.resources
    looked_for = wish.count + sum(reserved.values())
    if least and not record.had:  # it fails, and all that it has is given back
        back = {offer.node: offer.used for offer in offers}
        count, have, kinds = max(1, record.min_count), 0, KINDS
    else:  # what it has runs on, as it is
        back = dict(reserved)
        have = record.count - looked_for
        grows = least and record.count > record.had
        count, kinds = (least, ("fewer", "wait", "uncordon")) if grows else (looked_for, ("wait", "uncordon"))
    free = tuple(_given_back(offer, need, back.get(offer.node, 0)) for offer in offers)
    return Case(replace(wish, count=count), need, free, record.smaller, have, kinds)


def _given_back(offer: NodeOffer, need: Resources, count: int) -> NodeOffer:
    return replace(offer, free=offer.free + need.times(count), used=offer.used - count) if count else offer


def advise(case: Case) -> tuple[Advice, ...]:
    """All single changes that would do, or else the pairs, and so on; none when it fits, or when nothing helps."""
    look = _Look(case)
    if look.fits(look.now) >= case.wish.count:
        return ()
    kinds = [kind for kind in KINDS if kind in case.kinds and look.has(kind)]
    if look.is_hopeless(kinds):
        return ()
    for size in range(1, len(kinds) + 1):
        tried = [look.attempt(frozenset(some)) for some in combinations(kinds, size)]
        found = [advice for advice in tried if advice is not None]
        if found:
            return tuple(found[:MAX_ADVICE])
    return ()


class _Look:
    def __init__(self, case: Case) -> None:
        wish = case.wish
        self._case = case
        self.now = _Change(case.need, wish.max_per_node, wish.max_per_rack)
        self._cordoned = frozenset(offer.node for offer in case.offers if offer.cordoned)
        holders = sorted({holder.deployment for offer in case.offers for holder in offer.holders})
        self._holders = holders[:MAX_WAIT_FOR]
        self._plain: dict[Resources, list[int]] = {}
        self._used: dict[str, int] = {}
        for offer in case.offers:
            self._used[offer.rack] = self._used.get(offer.rack, 0) + offer.used

    def has(self, kind: Kind) -> bool:
        """Whether there is anything of this kind to change."""
        case = self._case
        return {
            "fewer": case.wish.count > 1,
            "flavor": bool(case.flavors),
            "max_per_node": case.wish.max_per_node > 0,
            "max_per_rack": case.wish.max_per_rack > 0,
            "wait": bool(self._holders),
            "uncordon": bool(self._cordoned),
        }[kind]

    def attempt(self, kinds: frozenset[Kind]) -> Advice | None:
        """The smallest change of all these kinds together that would do; None: the widest would not."""
        wanted = self._case.wish.count
        for size, change in self._widest(kinds):
            room = self.fits(change)
            target = min(room, wanted - 1) if "fewer" in kinds else wanted
            if 0 < target <= room:
                change = self._smallest(kinds, change, target)
                if len(change.uncordoned) <= MAX_NODES:
                    return self._advice(kinds, change, target, size)
        return None

    def is_hopeless(self, kinds: Iterable[Kind]) -> bool:
        """Not even one instance fits when all of these are changed as far as they go."""
        return not any(self.fits(change) for _, change in self._widest(frozenset(kinds)))

    def _widest(self, kinds: frozenset[Kind]) -> Iterator[tuple[Size | None, _Change]]:
        """The largest change of these kinds, for each flavor if that is one of them."""
        change = replace(
            self.now,
            max_per_node=0 if "max_per_node" in kinds else self.now.max_per_node,
            max_per_rack=0 if "max_per_rack" in kinds else self.now.max_per_rack,
            without=frozenset(self._holders if "wait" in kinds else ()),
            uncordoned=self._cordoned if "uncordon" in kinds else frozenset(),
        )
        if "flavor" not in kinds:
            yield None, change
        else:
            yield from ((size, replace(change, need=size.resources)) for size in self._case.flavors)

    def _smallest(self, kinds: frozenset[Kind], change: _Change, target: int) -> _Change:
        """One part after the other, while the rest stays as it is: less room never makes do with less of another."""
        if "uncordon" in kinds:
            change = replace(change, uncordoned=self._fewest_nodes(change, target))
        if "wait" in kinds:
            change = replace(change, without=self._fewest_holders(change, target))
        if "max_per_node" in kinds:
            most = max(offer.used for offer in self._case.offers) + target
            limits = range(self.now.max_per_node, most + 1)
            lowest = bisect_left(limits, target, key=lambda limit: self.fits(replace(change, max_per_node=limit)))
            change = replace(change, max_per_node=limits[lowest])
        if "max_per_rack" in kinds:
            most = max(self._used.values()) + target
            limits = range(self.now.max_per_rack, most + 1)
            lowest = bisect_left(limits, target, key=lambda limit: self.fits(replace(change, max_per_rack=limit)))
            change = replace(change, max_per_rack=limits[lowest])
        return change

    def _fewest_nodes(self, change: _Change, target: int) -> frozenset[str]:
        """Always the node that brings most: what a further node of a rack brings never grows, so these are the fewest.
        One more than MAX_NODES: too many."""
        room = dict.fromkeys(self._used, 0)
        closed: dict[str, list[tuple[int, str]]] = {}
        for offer, count in zip(self._case.offers, self._rooms(change), strict=True):
            if offer.cordoned:
                closed.setdefault(offer.rack, []).append((count, offer.node))
            else:
                room[offer.rack] += count
        for nodes in closed.values():
            nodes.sort(key=lambda node: (node[0], node[1]))
        caps = {rack: self._cap(change, rack) for rack in room}
        total = sum(min(caps[rack], count) for rack, count in room.items())
        picked: list[str] = []

        def brings(rack: str) -> int:
            return min(caps[rack], room[rack] + closed[rack][-1][0]) - min(caps[rack], room[rack])

        while total < target and len(picked) <= MAX_NODES:
            rack = min((rack for rack, nodes in closed.items() if nodes), key=lambda rack: (-brings(rack), rack))
            total += brings(rack)
            count, node = closed[rack].pop()
            room[rack] += count
            picked.append(node)
        return frozenset(picked)

    def _fewest_holders(self, change: _Change, target: int) -> frozenset[str]:
        """One, if one is enough; else a set of which none is too many."""

        def enough(without: frozenset[str]) -> bool:
            return self.fits(replace(change, without=without)) >= target

        for one in self._holders:
            if enough(frozenset({one})):
                return frozenset({one})
        kept = frozenset(self._holders)
        for one in reversed(self._holders):
            if enough(kept - {one}):
                kept -= {one}
        return kept

    # --- how many fit ---------------------------------------------------------------------------------------------

    def fits(self, change: _Change) -> int:
        room: dict[str, int] = {}
        for offer, count in zip(self._case.offers, self._rooms(change), strict=True):
            if not offer.cordoned or offer.node in change.uncordoned:
                room[offer.rack] = room.get(offer.rack, 0) + count
        return sum(min(self._cap(change, rack), count) for rack, count in room.items())

    def _rooms(self, change: _Change) -> list[int]:
        """What each node could take, were it not cordoned."""
        offers, need, limit = self._case.offers, change.need, change.max_per_node
        if need not in self._plain:
            self._plain[need] = [offer.free.holds(need) for offer in offers]
        rooms = list(self._plain[need])
        for index, offer in enumerate(offers):
            if change.without and offer.holders:
                back = [holder.reserved for holder in offer.holders if holder.deployment in change.without]
                rooms[index] = sum(back, offer.free).holds(need)
            if limit:
                rooms[index] = max(0, min(rooms[index], limit - offer.used))
        return rooms

    def _cap(self, change: _Change, rack: str) -> int:
        return max(0, change.max_per_rack - self._used[rack]) if change.max_per_rack else UNLIMITED

    # --- what is said ---------------------------------------------------------------------------------------------

    def _advice(self, kinds: frozenset[Kind], change: _Change, target: int, size: Size | None) -> Advice:
        count = self._case.have + target if "fewer" in kinds else 0
        waits, nodes = tuple(sorted(change.without)), tuple(sorted(change.uncordoned))
        parts: dict[Kind, str] = {
            "fewer": f"asking for {count} instances" if count > 1 else "asking for 1 instance",
            "flavor": f"flavor {size.flavor} ({size.resources})" if size else "",
            "max_per_node": f"max_per_node {change.max_per_node}",
            "max_per_rack": f"max_per_rack {change.max_per_rack}",
            "wait": f"waiting until {_names(waits)} {'have' if len(waits) > 1 else 'has'} given reservations back",
            "uncordon": f"uncordoning {_names(nodes)}",
        }
        some = tuple(kind for kind in KINDS if kind in kinds)
        return Advice(
            kinds=some,
            sentence="would do: " + " and ".join(parts[kind] for kind in some),
            count=count,
            flavor=size.flavor if size else "",
            max_per_node=change.max_per_node if "max_per_node" in kinds else 0,
            max_per_rack=change.max_per_rack if "max_per_rack" in kinds else 0,
            wait_for=waits,
            uncordon=nodes,
        )


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMES_TOLD} more" if len(names) > NAMES_TOLD else ""
    return ", ".join(names[:NAMES_TOLD]) + more
