"""One look at the whole fabric: the facts of an audit, from ZooKeeper, from every agent, and from every holder.

Nodes are asked a few racks at a time, so that answers of ten thousand nodes neither come at once nor make anybody wait
in vain; a rack with registered nodes and no leader is silent as a whole, which `compare` sees by its nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import msgspec

from fabric.api.control import ControlPlane, wall_ms
from fabric.api.mending import Mending
from fabric.api.problems import unavailable
from fabric.api.reading import Versioned
from fabric.commands import MAX_LISTED, Describe, Described, HeldList, ListHeld
from fabric.ordinals import MAX_COUNT
from fabric.records import BadRecord, Deployment, Drain, Image, Key, Lost
from fabric.roles.audit import Content, Facts, Place, Told
from zk import paths

R = TypeVar("R", bound=msgspec.Struct)
RACKS_AT_A_TIME = 16

Tell = Callable[[str, int, int], None]
"""(what is being done, how much of it is done, of how much)."""


async def look(control: ControlPlane, mending: Mending, tell: Tell) -> Facts:
    """503 when no node at all could be compared."""
    await control.require_leaders("compute")
    unreadable: dict[str, str] = {}
    tell("reading the records", 0, 0)
    marked = frozenset(await mending.names(paths.OPEN))
    records = _good(paths.DEPLOYMENTS, await mending.folder(paths.DEPLOYMENTS, Deployment), unreadable)
    keys = _good(paths.KEYS, await mending.folder(paths.KEYS, Key, skip="drop-"), unreadable)
    lost = _good(paths.LOST, await mending.folder(paths.LOST, Lost), unreadable)
    drains = _good(paths.DRAINS, await mending.folder(paths.DRAINS, Drain), unreadable)
    images = _good(paths.IMAGES, await mending.folder(paths.IMAGES, Image), unreadable)
    cordons = frozenset(await mending.names(paths.CORDONS))
    members = _by_node(await control.notes.present("compute"))
    storage = _by_node(await control.notes.present("storage"))
    told = await _ask_nodes(control, members, tell)
    if members and not told:
        raise unavailable("No compute node answered: there is nothing to compare the records with.")
    names: dict[str, list[str]] = {}
    for name, image in images.items():
        names.setdefault(image.record.digest, []).append(name)
    contents, silent = await _ask_holders(control, {one: tuple(some) for one, some in names.items()}, storage, tell)
    return Facts(
        now_ms=wall_ms(),
        records={name: (one.record, one.stat.version) for name, one in records.items()},
        unreadable=unreadable,
        marked=marked,
        keys={name: (one.record.deployment, one.stat.version) for name, one in keys.items()},
        lost={name: (one.record, one.stat.version) for name, one in lost.items()},
        drains={name: (one.record, one.stat.version) for name, one in drains.items()},
        cordons=cordons,
        members=members,
        told=told,
        contents=contents,
        storage=storage,
        silent=silent,
    )


def _good(
    folder: str, found: Mapping[str, Versioned[R] | BadRecord], unreadable: dict[str, str]
) -> dict[str, Versioned[R]]:
    unreadable.update((f"{folder}/{name}", str(one)[:300]) for name, one in found.items() if isinstance(one, BadRecord))
    return {name: one for name, one in found.items() if isinstance(one, Versioned)}


def _by_node(racks: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    return {node: rack for rack, nodes in racks.items() for node in nodes}


async def _ask_nodes(control: ControlPlane, members: Mapping[str, str], tell: Tell) -> dict[Place, Told]:
    """What each node has. Racks without a leader are left out."""
    racks = sorted(set(members.values()) & set(control.leaders("compute")))
    told: dict[Place, Told] = {}
    for start in range(0, len(racks), RACKS_AT_A_TIME):
        tell("asking the nodes, rack by rack", start, len(racks))
        some = tuple(racks[start : start + RACKS_AT_A_TIME])
        for reply in (await control.call_racks("compute", Describe("", MAX_COUNT), some)).replies:
            for node, answer in reply.results:
                if isinstance(answer, Described) and not answer.more:
                    told[reply.rack, node] = Told(answer.instances, answer.reserved)
    return told


async def _ask_holders(
    control: ControlPlane, names: Mapping[str, tuple[str, ...]], storage: Mapping[str, str], tell: Tell
) -> tuple[tuple[Content, ...], frozenset[str]]:
    """Who holds each content whole, and which storage nodes did not answer about some of them."""
    digests = sorted(names)
    holders: dict[str, list[Place]] = {digest: [] for digest in digests}
    silent: set[str] = set()
    for start in range(0, len(digests), MAX_LISTED):
        tell("asking who holds the images", start, len(digests))
        some = tuple(digests[start : start + MAX_LISTED])
        answered: set[str] = set()
        for reply in (await control.call_racks("storage", ListHeld(some))).replies:
            for node, answer in reply.results:
                if isinstance(answer, HeldList):
                    answered.add(node)
                    for index in answer.held:
                        if index < len(some):
                            holders[some[index]].append((reply.rack, node))
        silent |= set(storage) - answered
    contents = tuple(Content(digest, names[digest], tuple(sorted(holders[digest]))) for digest in digests)
    return contents, frozenset(silent)
