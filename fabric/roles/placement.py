"""Placing ordinals on offers: pure arithmetic, the same for a real request, a dry run and a replayed trace.

Step 6 of the flow. `place` gets what is wanted and what was offered and says how many instances each node gets:

- *spread* (default): as even as possible over racks, then over the nodes of a rack; between equals the emptier node,
  then a hash salted with the deployment, so that requests that arrive together do not all pick the same nodes first.
- *pack*: the fullest node that still fits, filled up before the next, so that large holes stay for large flavors.

`max_per_node` and `max_per_rack` count what the deployment already has there (`used`), so scaling up keeps them.
O((offers + count) log offers).
"""

from __future__ import annotations

import heapq
import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

from fabric.commands import Holder, Offer
from fabric.records import Policy
from fabric.resources import ZERO, Resources
from fabric.roles.plans import Place


@dataclass(frozen=True, slots=True)
class NodeOffer:
    """What one node offered. `used`: instances of this deployment that it has already; `utilisation`: 0 … 1, of the
    dimension that limits; `held`, `oldest`, `free`, `holders`: see `commands.Offer`. One without `short` was not heard
    of (it was silent, or is not asked): it only counts for what the rack has already."""

    node: str
    rack: str
    count: int
    used: int = 0
    utilisation: float = 0.0
    cordoned: bool = False
    short: str = ""
    capacity: int = 0
    held: int = 0
    oldest: int = 0
    free: Resources = ZERO
    holders: tuple[Holder, ...] = ()


def node_offer(node: str, rack: str, offer: Offer, used: int = 0) -> NodeOffer:
    """An agent's message as an input of `place`."""
    return NodeOffer(
        node,
        rack,
        0 if offer.cordoned else offer.count,
        used,
        utilisation(offer.free, offer.total),
        offer.cordoned,
        offer.short,
        offer.capacity,
        0 if offer.cordoned else offer.held,
        offer.oldest,
        offer.free if offer.registered else ZERO,  # one that is not registered takes nothing
        offer.holders,
    )


def utilisation(free: Resources, total: Resources) -> float:
    """How full a node is, 0 … 1, in the dimension in which it is fullest. (Spelled out: see `Resources`.)"""
    busy = 0.0 if total.vcpus or total.memory_mib or total.disk_mib else 1.0
    if total.vcpus:
        busy = 1.0 - free.vcpus / total.vcpus
    if total.memory_mib:
        busy = max(busy, 1.0 - free.memory_mib / total.memory_mib)
    if total.disk_mib:
        busy = max(busy, 1.0 - free.disk_mib / total.disk_mib)
    return busy


@dataclass(frozen=True, slots=True)
class Wish:
    """`count` more instances. Limits of 0 mean none. `salt`: the deployment's id."""

    count: int
    policy: Policy = "spread"
    max_per_node: int = 0
    max_per_rack: int = 0
    salt: str = ""


@dataclass(frozen=True, slots=True)
class Given:
    node: str
    rack: str
    count: int


@dataclass(frozen=True, slots=True)
class Placement:
    """`given`, sorted by rack and node; `short`: how many of the wish found no place."""

    given: tuple[Given, ...]
    short: int


@dataclass(slots=True)
class _Rack:
    room: int
    used: int = 0
    nodes: list[tuple[tuple[float, ...], int]] = field(default_factory=list)


def place(wish: Wish, offers: Sequence[NodeOffer]) -> Placement:
    """Divide `wish.count` instances over `offers`. Deterministic: the order of `offers` does not matter."""
    room = {offer.node: _room(wish, offer) for offer in offers}
    racks = _racks(wish, offers)
    counts: dict[str, int] = defaultdict(int)
    left = wish.count
    if wish.policy == "pack":
        order = sorted(offers, key=lambda offer: _preference("pack", wish.salt, offer))
        for offer in order:
            take = min(left, room[offer.node], racks[offer.rack].room)
            if take > 0:
                counts[offer.node] += take
                racks[offer.rack].room -= take
                left -= take
    else:
        left = _spread(wish, offers, room, racks, counts)
    given = tuple(
        Given(offer.node, offer.rack, counts[offer.node])
        for offer in sorted(offers, key=lambda offer: (offer.rack, offer.node))
        if counts[offer.node]
    )
    return Placement(given, left)


def preference(policy: Policy, used: int, busy: float, count: int, tie: int) -> tuple[float, ...]:
    """Which node comes first, for a pack everywhere, for a spread in its rack: the one with the least of this. `used`,
    `busy`, `count`: see `NodeOffer`; `tie`: see `tie_of`."""
    return (-busy, count, tie) if policy == "pack" else (used, busy, tie)


def _preference(policy: Policy, salt: str, offer: NodeOffer) -> tuple[float, ...]:
    return preference(policy, offer.used, offer.utilisation, offer.count, tie_of(salt_of(salt), offer.node))


def _spread(
    wish: Wish, offers: Sequence[NodeOffer], room: dict[str, int], racks: dict[str, _Rack], counts: dict[str, int]
) -> int:
    for index, offer in enumerate(offers):
        if room[offer.node] > 0:
            racks[offer.rack].nodes.append((_preference("spread", wish.salt, offer), index))
    heap: list[tuple[int, int, str]] = []
    for name, rack in racks.items():
        heapq.heapify(rack.nodes)
        if rack.nodes and rack.room > 0:
            heap.append((rack.used, tie_of(salt_of(wish.salt), name), name))
    heapq.heapify(heap)
    left = wish.count
    while left and heap:
        used, salt, name = heapq.heappop(heap)
        rack = racks[name]
        key, index = heapq.heappop(rack.nodes)
        node = offers[index].node
        counts[node] += 1
        rack.room -= 1
        left -= 1
        if counts[node] < room[node]:
            heapq.heappush(rack.nodes, ((key[0] + 1, *key[1:]), index))
        if rack.nodes and rack.room > 0:
            heapq.heappush(heap, (used + 1, salt, name))
    return left


def deal(ordinals: Iterable[int], placement: Placement) -> dict[Place, tuple[int, ...]]:
    """(node, rack) -> its ordinals: the smallest go to the first node. When it is short, the largest get no place."""
    left = iter(sorted(ordinals))
    return {(one.node, one.rack): tuple(islice(left, one.count)) for one in placement.given}


def explain(wish: Wish, offers: Sequence[NodeOffer], silent: Iterable[str] = ()) -> tuple[str, ...]:
    """Why no more fits, a line a rack: how many would, and what the nodes lack, per dimension."""
    racks = _racks(wish, offers)
    by_rack: dict[str, list[NodeOffer]] = defaultdict(list)
    for offer in offers:
        by_rack[offer.rack].append(offer)
    lines: list[str] = []
    for name in sorted(by_rack):
        nodes = by_rack[name]
        fits = sum(_room(wish, offer) for offer in nodes)
        lacking: dict[str, int] = defaultdict(int)
        for offer in nodes:
            if offer.cordoned:
                lacking["cordoned"] += 1
            elif not offer.short and not offer.count:
                lacking["silent or left out"] += 1
            elif wish.max_per_node and offer.count > 0 and _room(wish, offer) < offer.count:
                lacking[f"at max_per_node {wish.max_per_node}"] += 1
            else:
                then = "then " if offer.count else ""
                lacking[f"{then}out of {offer.short}" + (" (reserved by other requests)" if offer.held else "")] += 1
        if wish.max_per_rack and racks[name].room < fits:
            fits = max(0, racks[name].room)
            lacking[f"the rack at max_per_rack {wish.max_per_rack}"] += 1
        why = ", ".join(f"{count} {what}" for what, count in sorted(lacking.items()))
        lines.append(f"rack {name}: {fits} more fit on {len(nodes)} nodes" + (f" ({why})" if why else ""))
    lines.extend(f"{what} did not answer" for what in sorted(silent))
    return tuple(lines)


def _room(wish: Wish, offer: NodeOffer) -> int:
    if wish.max_per_node:
        return max(0, min(offer.count, wish.max_per_node - offer.used))
    return offer.count


def _racks(wish: Wish, offers: Sequence[NodeOffer]) -> dict[str, _Rack]:
    racks: dict[str, _Rack] = {}
    for offer in offers:
        rack = racks.setdefault(offer.rack, _Rack(wish.max_per_rack or wish.count))
        rack.used += offer.used
    if wish.max_per_rack:
        for rack in racks.values():
            rack.room = max(0, wish.max_per_rack - rack.used)
    return racks


def salt_of(text: str) -> int:
    """For `tie_of`."""
    return zlib.crc32(text.encode())


def tie_of(salt: int, name: str) -> int:
    """Who comes first of those that are as good as each other: for each deployment somebody else."""
    return zlib.crc32(name.encode(), salt)
