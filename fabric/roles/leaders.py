"""Who leads which rack of one layer: a listing of the leader znodes. Leaders and API processes have one; agents that do
not lead look a leader up when they need one (`finder`), so that ZooKeeper need not tell thousands of every change.
"""

from __future__ import annotations

import heapq
import random
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

from fabric.records import LayerName, Leader
from fabric.roles.listing import Listing
from fabric.roles.outbox import Outbox
from zk import paths
from zk.tree import Stat


@dataclass(frozen=True, slots=True)
class Seen:
    """A leader znode as read: the record and its epoch (czxid)."""

    leader: Leader
    epoch: int


class LeaderDirectory(Listing[Leader, Seen]):
    """`leaders`: rack -> its leader."""

    def __init__(self, layer: LayerName, out: Outbox) -> None:
        super().__init__(paths.leaders(layer), Leader, _seen, f"leaders:{layer}:", out)
        self.layer: LayerName = layer

    @property
    def leaders(self) -> dict[str, Seen]:
        return self.entries


def _seen(leader: Leader, stat: Stat) -> Seen:
    return Seen(leader, stat.czxid)


def pick(leaders: dict[str, Seen], rng: random.Random, avoid: frozenset[str] = frozenset()) -> Seen | None:
    """Steps 1 and 2: one leader, random among the lightly loaded (the better of two random ones by load hint).
    `avoid`: addresses that just failed; they are taken only if there is nobody else."""
    seen = [leaders[rack] for rack in sorted(leaders)]
    fresh = [one for one in seen if one.leader.address not in avoid] or seen
    if not fresh:
        return None
    two = rng.sample(fresh, min(2, len(fresh)))
    return min(two, key=lambda one: one.leader.load)


def nearest(key: str, racks: Iterable[str], count: int) -> list[str]:
    """The `count` racks that come first for `key`, by rendezvous hashing: all who know the same racks say the same, and
    a rack that comes or goes moves only its own share."""
    salt = zlib.crc32(key.encode())
    return heapq.nlargest(count, racks, key=lambda rack: (zlib.crc32(rack.encode(), salt), rack))


def looks_after(rack: str, key: str, racks: Iterable[str]) -> bool:
    """Whether no other of `racks` is nearer to `key`. It ends at the first that is: a leader that goes over many keys
    spends a few hashes on each, not one for every rack."""
    salt = zlib.crc32(key.encode())
    mine = zlib.crc32(rack.encode(), salt), rack
    return not any((zlib.crc32(one.encode(), salt), one) > mine for one in racks)


def coarse(load: int) -> int:
    """A load as it is hinted: all leaders and API processes watch the hints, so that each that changes is read as often
    as there are leaders. Few under way are none; more are told in powers of two."""
    return 0 if load < 16 else 1 << (load.bit_length() - 1)
