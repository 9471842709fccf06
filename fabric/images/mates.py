"""Mates: nodes of one rack that fetch the same image at the same time, and pass chunks on to each other.

What is wanted is that about one copy leaves the holders for each rack, whoever comes when, and that nobody waits in a
circle. Two tables do that, both without sockets and clocks of their own.

`MateTable`, at a holder: who of which rack asked for what. A fetch introduces itself to its holders when it has the
manifest (`GetMates`, which says where its own chunks can be had), and is told of the others of its rack. Nobody else is
told of it, no leader has to know, and a holder that restarts hears of everybody again within a second or so. Entries go
`LEASE_S` after they were last renewed: so long a node serves what it has fetched.

`parents`, at a node: the chunks of an image are in `STRIPES` stripes (chunk n in stripe n mod `STRIPES`). For each
stripe all known nodes of the rack, this one included, have an order, by a hash of image, stripe and name. The first of
it fetches the stripe from the holders; each other one asks the node at place (own place - 1) // `FAN_OUT`, who has the
chunk, or waits for it itself and passes it on. Whoever is asked stands before the asker *by a number that does not
depend on who else is known*: so nodes that know different mates, because some came later, may do a chunk twice, but
never wait for each other in a circle. The orders of the stripes differ, so all nodes have some of the work, and none
sends much more than it takes.

That order is for what nobody has. A chunk that a mate is known to have (`Have`) is asked of that mate, which so serves
those who come late.

A mate is not believed anything: its chunks are hashed like those of a holder, and one that lies, dies or stalls is
dropped, and its stripes have another parent or come from the holders. So anybody may introduce himself as anything: it
costs time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field

from blake3 import blake3

from fabric.images.protocol import MAX_MATES, Holder

STRIPES = 8
FAN_OUT = 7
MAX_LINKS = 8
"""Mates that one fetch is connected to: as many as it can have parents."""
MIN_SHARED_BYTES = 8 << 20
"""A smaller image isn't worth the introductions: each node takes it from its holders."""
LEASE_S = 60.0
MAX_GROUPS = 1024
"""Pairs of image and rack that one holder keeps in mind."""
MAX_PEERS = 4096


def parents(digest: str, me: str, others: Iterable[str]) -> tuple[str | None, ...]:
    """For each stripe, which of the others to ask for what nobody is known to have; None: the holders."""
    names = sorted({me, *others})
    found: list[str | None] = []
    for stripe in range(STRIPES):
        order = sorted(names, key=lambda name: (_place(digest, stripe, name), name))
        own = order.index(me)
        found.append(order[(own - 1) // FAN_OUT] if own else None)
    return tuple(found)


def links(digest: str, me: str, others: Iterable[str]) -> tuple[str, ...]:
    """At most `MAX_LINKS` mates to be connected to: the parents, and others, which may have something already."""
    names = sorted(set(others) - {me}, key=lambda name: _place(digest, -1, f"{me} {name}"))
    needed = [name for name in dict.fromkeys(parents(digest, me, names)) if name is not None]
    return tuple(dict.fromkeys([*needed, *names]))[:MAX_LINKS]


def bits(flags: Iterable[bool]) -> bytes:
    """One bit a chunk, the lowest of the first byte first: what `Have` carries."""
    flags = list(flags)
    packed = bytearray(-(-len(flags) // 8))
    for index, flag in enumerate(flags):
        if flag:
            packed[index >> 3] |= 1 << (index & 7)
    return bytes(packed)


def _place(digest: str, stripe: int, name: str) -> bytes:
    return blake3(f"{digest} {stripe} {name}".encode()).digest(8)


@dataclass(slots=True)
class _Group:
    """`until`: by node, when it is forgotten; the version is another one when a node has come."""

    version: int = 1
    mates: dict[str, Holder] = field(default_factory=dict)
    until: dict[str, float] = field(default_factory=dict)


class MateTable:
    """Bounded; who finds no place in it is told nothing, and fetches from the holders."""

    def __init__(self) -> None:
        self._groups: OrderedDict[tuple[str, str], _Group] = OrderedDict()  # renewed last at the end
        self._peers: OrderedDict[Hashable, tuple[str, str]] = OrderedDict()

    def introduce(self, now: float, peer: Hashable, digest: str, mate: Holder) -> tuple[int, Sequence[Holder]]:
        """`mate` fetches this image, over the connection that is known by `peer`. Answers with the version and the
        mates it has."""
        key = (digest, mate.rack)
        group = self._groups.get(key)
        if group is None:
            while len(self._groups) >= MAX_GROUPS:
                self._groups.popitem(last=False)
            group = self._groups[key] = _Group()
        self._groups.move_to_end(key)
        for gone in [node for node, until in group.until.items() if now >= until]:
            del group.mates[gone], group.until[gone]
        if mate.node in group.mates or len(group.mates) < MAX_MATES:
            group.version += group.mates.get(mate.node) != mate
            group.mates[mate.node] = mate
            group.until[mate.node] = now + LEASE_S
        self._peers[peer] = key
        self._peers.move_to_end(peer)
        while len(self._peers) > MAX_PEERS:
            self._peers.popitem(last=False)
        return group.version, [one for node, one in group.mates.items() if node != mate.node]

    def version(self, peer: Hashable) -> int:
        """Of the mates of who introduced himself over this connection; 0: nobody did."""
        group = self._groups.get(self._peers.get(peer, ("", "")))
        return group.version if group is not None else 0
