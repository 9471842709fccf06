"""The boot stub topology model (HPL-2001-321, section 2.3): one znode a stub.

Theory of operation. A stub comes here in one of three ways: an operator lists it beforehand, it registers itself when
it boots, or it answers a discovery. These meet in one record: see `merged`. The entry is persistent: who lives is
judged over the bus by those who care, so the directory costs nothing while nothing changes.

An entry that somebody wrote by hand and got wrong is a BadRecord where it alone is asked for, and an `Unreadable` among
the others in a list. A list of n stubs takes n + 257 reads at most (the root, its shards, each stub), and holds no more
than SHARDS_AT_ONCE shards in memory unless the caller keeps what it is given.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import msgspec

from deploy.directory.access import Access, in_turn
from deploy.identity import is_within
from deploy.records import StubRecord
from fabric.records import BadRecord, decode, encode
from zk import paths
from zk.tree import BadVersion, ConnectionLost, NodeExists, NoNode

SHARDS_AT_ONCE = 16


class NameTaken(Exception):
    """Another machine's stub has this name, and is alive: who, where."""


@dataclass(frozen=True, slots=True)
class Registered:
    """`record`: as it is in the directory now. `replaced`: an address of another incarnation was there."""

    record: StubRecord
    change: Literal["new", "changed", "same"]
    replaced: StubRecord | None = None


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Among what was listed: a znode that is no record. `what`: the stub's name, or the managent's path."""

    what: str
    reason: str


@dataclass(frozen=True, slots=True)
class Stubs:
    """By name."""

    records: tuple[StubRecord, ...]
    unreadable: tuple[Unreadable, ...] = ()


class StubDirectory:
    """Every method may raise the TreeErrors that any operation may (after some tries), besides what it says."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._client = access.client

    async def register(
        self, record: StubRecord, alive: Callable[[StubRecord], Awaitable[bool]] | None = None
    ) -> Registered:
        """Enter a stub, or merge it with what is there; nothing is written when that changes nothing. `alive` is asked
        about an entry of another host, whose address would be replaced: raises NameTaken when it is. Without it the
        newcomer wins; `replaced` says whom it displaced. Raises BadRecord when what is there can't be read."""
        path = paths.stub(record.name)

        async def once() -> Registered:
            try:
                await self._access.create(path, encode(record))
                return Registered(record, "new")
            except NodeExists:
                pass
            got = await self._client.get(path)
            found = decode(got.data, StubRecord, path)
            displaced = found if found.address and record.address and found.guid != record.guid else None
            if displaced and displaced.host != record.host and alive is not None and await alive(displaced):
                raise NameTaken(
                    f"stub {record.name}: expected a name of its own for the one on {record.host} ({record.address}), "
                    f"found it taken by one on {found.host} ({found.address}), which answers: give one of them --name"
                )
            wanted = merged(found, record)
            if wanted != found:
                await self._client.set(path, encode(wanted), got.stat.version)
            return Registered(wanted, "changed" if wanted != found else "same", displaced)

        return await self._access.settled(once, NoNode, BadVersion)

    async def remove(self, name: str) -> bool:
        """Whether it was there. After a lost reply that is not known: then it says True."""
        path = paths.stub(name)
        doubt = False

        async def once() -> bool:
            nonlocal doubt
            try:
                await self._client.delete(path)
            except NoNode:
                return doubt
            except ConnectionLost:
                doubt = True
                raise
            return True

        return await self._access.settled(once)

    async def get(self, name: str) -> StubRecord | None:
        """Raises BadRecord."""
        path = paths.stub(name)
        data = await self._access.data(path)
        return None if data is None else decode(data, StubRecord, path)

    async def some(self, names: Iterable[str]) -> tuple[tuple[StubRecord, ...], tuple[str, ...]]:
        """Of `names`: (those that are there and can be read, the names that are not there)."""

        async def read(name: str) -> StubRecord | str | None:
            try:
                return await self.get(name) or name
            except BadRecord:
                return None

        found = await asyncio.gather(*map(read, names))
        return tuple(one for one in found if isinstance(one, StubRecord)), tuple(
            one for one in found if isinstance(one, str)
        )

    async def each(self, domain: str = "") -> AsyncIterator[StubRecord | Unreadable]:
        """All whose domain is `domain` or below it, in no order that means anything."""
        async for records in in_turn(await self._access.names(paths.STUBS), self._stubs_of, SHARDS_AT_ONCE):
            for record in records:
                if isinstance(record, Unreadable) or is_within(record.domain, domain):
                    yield record

    async def all(self, domain: str = "") -> Stubs:
        found = [one async for one in self.each(domain)]
        records = sorted((one for one in found if isinstance(one, StubRecord)), key=lambda record: record.name)
        return Stubs(tuple(records), tuple(one for one in found if isinstance(one, Unreadable)))

    async def _stubs_of(self, shard: str) -> list[StubRecord | Unreadable]:
        async def read(name: str) -> StubRecord | Unreadable | None:
            try:
                data = await self._access.data(path := f"{paths.STUBS}/{shard}/{name}")
                return None if data is None else decode(data, StubRecord, path)
            except BadRecord as error:
                return Unreadable(name, str(error))

        names = await self._access.names(f"{paths.STUBS}/{shard}")
        return [one for one in await asyncio.gather(*map(read, names)) if one is not None]


def merged(found: StubRecord, new: StubRecord) -> StubRecord:
    """What a stub's entry becomes when `new` is registered. An operator says which domain, and where the stub is if it
    does not say so itself; what a stub says of itself (at boot, or to a discovery) is where it is, and counts from then
    on; of the domain, only if it says one. An entry that an operator made stays the operator's."""
    if new.by == "operator":
        if new.address in ("", found.address):
            return msgspec.structs.replace(found, domain=new.domain or found.domain, by="operator")
        return msgspec.structs.replace(new, domain=new.domain or found.domain)
    kept = found.by == "operator"
    return msgspec.structs.replace(
        new,
        domain=new.domain or (found.domain if kept else ""),
        by=found.by if kept or found.guid == new.guid else new.by,
    )
