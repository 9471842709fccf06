"""A look into ZooKeeper, as one who only reads: members, leaders, owners, records.

A session of its own, so that what is seen is what ZooKeeper has and not what the API tells. Nothing is retried: a look
that fails says so (`TreeError`), and the next may succeed.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple, TypeVar

import msgspec

from fabric.records import BadRecord, Deployment, Image, Leader, Lost, Member, Owner, decode
from zk import paths
from zk.client import TreeClient
from zk.tree import NoNode

R = TypeVar("R", bound=msgspec.Struct)


class Present(NamedTuple):
    """`compute`, `storage`: node -> rack; `leaders`: (layer, rack) -> node; `owners`: nodes that coordinate."""

    compute: dict[str, str]
    storage: dict[str, str]
    leaders: dict[tuple[str, str], str]
    owners: tuple[str, ...]


class Written(NamedTuple):
    """All that is written down. `unreadable`: what is no record, as text."""

    records: dict[str, Deployment]
    images: dict[str, Image]
    open: frozenset[str]
    lost: tuple[str, ...]
    cordoned: frozenset[str]
    unreadable: tuple[str, ...]


async def members(client: TreeClient, racks: tuple[str, ...]) -> dict[str, str]:
    """Compute nodes -> racks. Raises TreeError."""
    return await _members(client, "compute", racks)


async def present(client: TreeClient, racks: tuple[str, ...]) -> Present:
    """Raises TreeError, BadRecord."""
    compute, storage, standing, opened = await asyncio.gather(
        _members(client, "compute", racks), _members(client, "storage", racks), _leaders(client),
        _children(client, paths.OPEN),
    )  # fmt: skip
    owners = await asyncio.gather(*(_record(client, paths.owner(one), Owner) for one in opened))
    return Present(compute, storage, standing, tuple(one.node for one in owners if one is not None))


async def written(client: TreeClient) -> Written:
    """Raises TreeError."""
    unreadable: list[str] = []

    async def all_of(root: str, kind: type[R]) -> dict[str, R]:
        names = await _children(client, root)
        found = await asyncio.gather(*(_record(client, f"{root}/{one}", kind, unreadable) for one in names))
        return {name: one for name, one in zip(names, found, strict=True) if one is not None}

    records, images, lost = await asyncio.gather(
        all_of(paths.DEPLOYMENTS, Deployment), all_of(paths.IMAGES, Image), all_of(paths.LOST, Lost)
    )
    opened, cordoned = await asyncio.gather(_children(client, paths.OPEN), _children(client, paths.CORDONS))
    return Written(records, images, frozenset(opened), tuple(lost), frozenset(cordoned), tuple(unreadable))


async def _members(client: TreeClient, layer: paths.Layer, racks: tuple[str, ...]) -> dict[str, str]:
    listed = await asyncio.gather(*(_children(client, paths.rack_members(layer, rack)) for rack in racks))
    return {name: rack for rack, names in zip(racks, listed, strict=True) for name in names}


async def _leaders(client: TreeClient) -> dict[tuple[str, str], str]:
    found: dict[tuple[str, str], str] = {}
    for layer in paths.LAYERS:
        racks = await _children(client, paths.leaders(layer))
        records = await asyncio.gather(*(_record(client, paths.leader(layer, rack), Leader) for rack in racks))
        found.update({(layer, rack): one.node for rack, one in zip(racks, records, strict=True) if one is not None})
    return found


async def _children(client: TreeClient, path: str) -> tuple[str, ...]:
    try:
        return await client.children(path)
    except NoNode:
        return ()


async def _record(client: TreeClient, path: str, kind: type[R], unreadable: list[str] | None = None) -> R | None:
    try:
        return decode((await client.get(path)).data, kind, path)
    except NoNode:
        return None
    except BadRecord as error:
        if unreadable is None:
            raise
        unreadable.append(str(error))
        return None


async def addresses(client: TreeClient, racks: tuple[str, ...]) -> dict[str, tuple[tuple[str, int], ...]]:
    """Node -> (host, port) of each port that its agent listens at. Raises TreeError, BadRecord."""
    found: dict[str, tuple[tuple[str, int], ...]] = {}
    for layer in paths.LAYERS:
        for node, rack in (await _members(client, layer, racks)).items():
            member = await _record(client, paths.member(layer, rack, node), Member)
            if member is not None:
                found[node] = tuple(filter(None, map(_port_of, (member.address, member.data_endpoint))))
    return found


def _port_of(endpoint: str) -> tuple[str, int] | None:
    """Of "tcp://host:port", perhaps with a path."""
    host, _, port = endpoint.removeprefix("tcp://").partition("/")[0].rpartition(":")
    return (host, int(port)) if host and port.isdecimal() else None
