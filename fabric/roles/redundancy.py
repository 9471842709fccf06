"""Redundancy as arithmetic: which contents lack holders by what the storage agents said, and where a copy goes.

A content is redundant when `redundancy` agents hold it whole, not all of them in one rack. In one rack alone it is
redundant too as long as nobody in another rack has room for it. More holders than that are let be: a copy too many
costs room and nothing else, it goes with the content, and two leaders that each dropped "the surplus one" could drop
both.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from fabric.commands import HeldList
from fabric.roles.calls import Gathered


@dataclass(frozen=True, slots=True)
class Store:
    """A storage agent as it answered. `copies`: being fetched there now, for whomever."""

    node: str
    rack: str
    endpoint: str
    free_bytes: int
    busy: int
    copies: int


@dataclass(frozen=True, slots=True)
class Found:
    """What the storage agents said of one content. `copying`, `damaged`: nodes that are fetching it, or have it but for
    lost chunks."""

    holders: tuple[Store, ...] = ()
    copying: frozenset[str] = frozenset()
    damaged: frozenset[str] = frozenset()


def survey(digests: Sequence[str], gathered: Gathered) -> tuple[dict[str, Store], dict[str, Found]]:
    """All that answered a `ListHeld(digests)`, by node, and what was found of each digest. Who can't be fetched from
    does not count."""
    stores: dict[str, Store] = {}
    holders: dict[int, list[Store]] = {}
    copying: dict[int, set[str]] = {}
    damaged: dict[int, set[str]] = {}
    for reply in gathered.replies:
        for node, said in reply.results:
            if isinstance(said, HeldList) and said.data_endpoint:
                store = Store(node, reply.rack, said.data_endpoint, said.free_bytes, said.busy, said.copies)
                stores[node] = store
                for index in said.held:
                    holders.setdefault(index, []).append(store)
                for index in said.copying:
                    copying.setdefault(index, set()).add(node)
                for index in said.damaged:
                    damaged.setdefault(index, set()).add(node)
    found = {
        digest: Found(
            tuple(holders.get(index, ())), frozenset(copying.get(index, ())), frozenset(damaged.get(index, ()))
        )
        for index, digest in enumerate(digests)
    }
    return stores, found


def lacks(found: Found, stores: Mapping[str, Store], size: int, redundancy: int) -> bool:
    """Whether one more holder is due, or a damaged copy is to be healed."""
    if len(found.holders) < redundancy or found.damaged:
        return True
    racks = {holder.rack for holder in found.holders}
    return len(racks) < min(2, redundancy) and any(
        store.rack not in racks and _takes(store, found, size) for store in stores.values()
    )


def pick_target(
    digest: str,
    found: Found,
    stores: Mapping[str, Store],
    size: int,
    redundancy: int,
    avoid: Collection[str] = (),
) -> Store | None:
    """Where one more copy goes: in a rack without one, if any has room. There, an agent that is at it already; then one
    that lacks but a few chunks; then the one with the fewest copies under way; of equals, by a hash of node and
    content, so that all leaders pick the same one and many contents are spread over many agents. With holders enough,
    only who has a damaged copy is a target."""
    racks = {holder.rack for holder in found.holders}
    held = {holder.node for holder in found.holders}
    enough = len(held) >= redundancy
    spread = enough and len(racks) >= min(2, redundancy)

    def order(store: Store) -> tuple[bool, bool, bool, int, int]:
        return (
            store.rack in racks,
            store.node not in found.copying,
            store.node not in found.damaged,
            store.copies,
            zlib.crc32(store.node.encode(), zlib.crc32(digest.encode())),
        )

    takers = [
        store
        for store in stores.values()
        if store.node not in held and store.node not in avoid and _takes(store, found, size)
        if store.node in found.damaged or not (spread or (enough and store.rack in racks))
    ]
    return min(takers, key=order, default=None)


def pick_sources(
    digest: str, found: Found, stores: Mapping[str, Store], target: Store | None, most: int
) -> tuple[str, ...]:
    """Endpoints to copy from: the least busy first, then by hash. With no holder left, those who lost chunks: each may
    have what the others lost, and the target, if it is one of them, keeps what it has."""
    sources = found.holders or tuple(stores[node] for node in sorted(found.damaged) if node in stores)

    def order(store: Store) -> tuple[int, int]:
        return store.busy, zlib.crc32(store.node.encode(), zlib.crc32(digest.encode()))

    others = (store for store in sources if target is None or store.node != target.node)
    return tuple(store.endpoint for store in sorted(others, key=order)[:most])


def with_holder(found: Found, store: Store) -> Found:
    """As it is when `store` has a whole copy too."""
    others = tuple(holder for holder in found.holders if holder.node != store.node)
    return Found((*others, store), found.copying - {store.node}, found.damaged - {store.node})


def _takes(store: Store, found: Found, size: int) -> bool:
    """It has room, or needs little: who is at it has room already, and who lost chunks has the others."""
    return store.node in found.copying or store.node in found.damaged or store.free_bytes >= max(1, size)
