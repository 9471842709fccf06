"""The znodes that the API reads and writes, typed: deployments, images, cordons, idempotency keys.

Theory of operation. ZooKeeper is the only place where records live; nothing is cached here. Each operation has a bound
(`tree_wait_s`); while the session is not connected nothing is begun at all, so that a refused request has changed
nothing. A reply that was lost is looked up: every create is recognisable (a deployment's id has random characters of
ours, a key names its deployment), so that "it may have happened" becomes a yes or a no.

A deployment comes to be in one transaction: the record, its empty trace, the open marker that makes rack leaders care
for it, and the idempotency key if there is one; and only if the image's record is still the one that was read.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec

from fabric.api.problems import conflict, not_found, unavailable
from fabric.api.settings import ApiLimits
from fabric.records import BadRecord, Deployment, Image, Key, LayerName, decode, encode
from zk import paths
from zk.client import TreeClient
from zk.tree import (
    BadVersion,
    Check,
    ConnectionLost,
    Create,
    Delete,
    Done,
    MultiFailed,
    NodeExists,
    NoNode,
    SessionState,
    Set,
    Stat,
    Written,
)

R = TypeVar("R", bound=msgspec.Struct)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Versioned(Generic[R]):
    """A record with what ZooKeeper knows of its znode; `stat.mzxid` is the record's `index`."""

    record: R
    stat: Stat


class IdTaken(Exception):
    """Another deployment has this id: make another."""


class KeyTaken(Exception):
    """Another request has used this idempotency key in this moment: read it."""


class ImageChanged(Exception):
    """The image's record is not the one that was read any more: read it again."""


class Store:
    """Every method may raise the TreeErrors ConnectionLost, SessionExpired, Overloaded and Refused, TimeoutError, and
    BadRecord; the application turns these into problems."""

    def __init__(self, client: TreeClient, limits: ApiLimits, rng: random.Random) -> None:
        self._client = client
        self._limits = limits
        self._rng = rng
        self._reads = asyncio.Semaphore(limits.list_reads)

    def require_session(self) -> None:
        """503 unless ZooKeeper is connected: nothing is promised during an outage."""
        state = self._client.tree.state
        if state is not SessionState.CONNECTED:
            raise unavailable(f"The session with ZooKeeper is {state.value}; nothing was changed. Try again soon.")

    # --- deployments ---------------------------------------------------------------------------------------------

    async def deployment(self, deployment_id: str, watch: bool = False) -> Versioned[Deployment]:
        """404 when there is none."""
        found = await self._read(paths.deployment(deployment_id), Deployment, watch)
        if found is None:
            raise not_found("deployment", deployment_id)
        return found

    async def find_deployment(self, deployment_id: str) -> Versioned[Deployment] | None:
        return await self._read(paths.deployment(deployment_id), Deployment)

    async def deployment_ids(self) -> list[str]:
        """Ascending, which is by creation."""
        return await self._names(paths.DEPLOYMENTS)

    async def deployments(self, ids: Iterable[str]) -> list[Versioned[Deployment]]:
        """In the order of `ids`, without those that are gone; `list_reads` at a time."""
        return await self._read_all([paths.deployment(one) for one in ids], Deployment)

    async def active(self, wanted: Callable[[Deployment], bool]) -> list[Deployment]:
        """Deployments that have, or will have, instances, and that `wanted` says yes to."""
        found: list[Deployment] = []
        ids = await self.deployment_ids()
        for start in range(0, len(ids), self._limits.list_reads * 8):
            for one in await self.deployments(ids[start : start + self._limits.list_reads * 8]):
                record = one.record
                ended = record.gone or record.state == "deleted" or (record.state == "failed" and record.final)
                if not ended and wanted(record):
                    found.append(record)
        return found

    async def create(
        self, record: Deployment, image: Versioned[Image], body: str, stale_key: Stat | None
    ) -> Versioned[Deployment]:
        """One transaction. `record.key`: the digest of the idempotency key, or "". `stale_key`: the key's znode names a
        deployment that is gone, and is taken over. Raises IdTaken, KeyTaken, ImageChanged."""
        ops: list[Create | Set | Delete | Check] = [
            Create(paths.deployment(record.id), encode(record)),
            Create(paths.trace(record.id)),
            Create(paths.open_marker(record.id)),
            Check(paths.image(image.record.name), image.stat.version),
        ]
        if record.key:
            data = encode(Key(record.id, body))
            at = paths.key(record.key)
            ops.append(Create(at, data) if stale_key is None else Set(at, data, stale_key.version))
        for _ in range(self._limits.write_tries):
            self.require_session()
            try:
                await self._bounded(self._client.multi(*ops))
            except MultiFailed as failed:
                if failed.index == 0 and isinstance(failed.cause, NodeExists):
                    return await self._mine(record)
                if failed.index == 3:
                    raise ImageChanged from failed
                if failed.index == 4:
                    raise KeyTaken from failed
                raise
            except ConnectionLost:
                await self._pause()
                if await self.find_deployment(record.id) is None:
                    continue
            return await self._mine(record)
        raise unavailable("ZooKeeper did not answer; the deployment was not written. Try again soon.")

    async def _mine(self, record: Deployment) -> Versioned[Deployment]:
        """The record as written; another request's with the same id is told by what differs for certain."""
        found = await self.deployment(record.id)
        now, mine = found.record, record
        if (now.created_ms, now.spec, now.key, now.name) != (mine.created_ms, mine.spec, mine.key, mine.name):
            raise IdTaken
        return found

    async def change(
        self, deployment_id: str, update: Callable[[Deployment], Deployment | None]
    ) -> Versioned[Deployment]:
        """Apply `update` to the record and make sure that it is open for a coordinator, in one transaction. `update`
        returns None to leave it as it is. Whoever else changes the record at the same time is seen: `update` is then
        applied to what they wrote. 409 after `write_tries` lost races."""
        path = paths.deployment(deployment_id)
        marker = paths.open_marker(deployment_id)
        found = await self.deployment(deployment_id)
        marked = not found.record.final
        for _ in range(self._limits.write_tries):
            after = update(found.record)
            if after is None:
                return found
            self.require_session()
            opening = Check(marker, -1) if marked else Create(marker)
            try:
                done = await self._bounded(
                    self._client.multi(Set(path, encode(after), found.stat.version), opening)
                )
                return Versioned(after, _written(done))
            except MultiFailed as failed:
                if isinstance(failed.cause, NodeExists):
                    marked = True
                    continue
                if isinstance(failed.cause, NoNode) and failed.index == 1:
                    marked = False
                    continue
                if not isinstance(failed.cause, BadVersion | NoNode):
                    raise
            except ConnectionLost:
                await self._pause()
                again = await self.deployment(deployment_id)
                if again.record == after:
                    return again
                found = again
                continue
            await self._pause()
            found = await self.deployment(deployment_id)
        raise conflict(f"The record of {deployment_id} changes too often; nothing was changed. Try again.")

    async def trace(self, deployment_id: str) -> bytes:
        """Packed, as the coordinator wrote it; empty when it has not yet. 404 when there is no such deployment."""
        try:
            return (await self._bounded(self._client.get(paths.trace(deployment_id)))).data
        except NoNode:
            raise not_found("deployment", deployment_id) from None

    # --- idempotency keys ----------------------------------------------------------------------------------------

    async def key(self, digest: str) -> Versioned[Key] | None:
        return await self._read(paths.key(digest), Key)

    # --- images --------------------------------------------------------------------------------------------------

    async def image(self, name: str) -> Versioned[Image] | None:
        return await self._read(paths.image(name), Image)

    async def image_names(self) -> list[str]:
        return await self._names(paths.IMAGES)

    async def images(self, names: Iterable[str]) -> list[Versioned[Image]]:
        return await self._read_all([paths.image(name) for name in names], Image)

    async def write_image(self, record: Image, fence: str) -> Image | None:
        """Create or replace; returns the record that was there before. `fence` is a znode path that must not exist: see
        `fabric.api.contents`. Raises MultiFailed with index 0 when it does."""
        path, data = paths.image(record.name), encode(record)
        for _ in range(self._limits.write_tries):
            self.require_session()
            before = await self.image(record.name)
            if before is not None and before.record == record:
                return None
            write = Create(path, data) if before is None else Set(path, data, before.stat.version)
            try:
                await self._bounded(self._client.multi(Create(fence), Delete(fence), write))
                return before.record if before is not None else None
            except MultiFailed as failed:
                if failed.index == 0 or not isinstance(failed.cause, NodeExists | BadVersion | NoNode):
                    raise
            except ConnectionLost:
                pass
            await self._pause()
        raise unavailable(f"The record of image {record.name} could not be written; push it again.")

    async def delete_image(self, image: Versioned[Image]) -> bool:
        """False when it changed meanwhile."""
        try:
            await self._bounded(self._client.delete(paths.image(image.record.name), image.stat.version))
        except (BadVersion, NoNode):
            return False
        except ConnectionLost:
            await self._pause()
            return await self.image(image.record.name) is None
        return True

    async def raise_fence(self, path: str) -> bool:
        """Create an ephemeral znode; False when it is there already."""
        self.require_session()
        try:
            await self._bounded(self._client.create(path, ephemeral=True))
        except NodeExists:
            return False
        return True

    async def lower_fence(self, path: str) -> None:
        await self._bounded(self._client.delete(path))

    # --- members -------------------------------------------------------------------------------------------------

    async def racks_with_members(self, layer: LayerName, besides: Iterable[str]) -> list[str]:
        """Racks, other than `besides`, in which an agent of the layer is registered."""
        names = await self._names(f"{paths.MEMBERS}/{layer}")
        others = sorted(set(names) - set(besides))
        reads = (self._bounded(self._client.children(paths.rack_members(layer, one))) for one in others)
        members = await asyncio.gather(*reads)
        return [rack for rack, nodes in zip(others, members, strict=True) if nodes]

    # --- cordons -------------------------------------------------------------------------------------------------

    async def cordon(self, node: str, wanted: bool) -> None:
        """Idempotent, so a lost reply is answered by doing it again."""
        self.require_session()
        path = paths.cordon(node)
        for _ in range(self._limits.write_tries):
            try:
                if wanted:
                    await self._bounded(self._client.create(path))
                else:
                    await self._bounded(self._client.delete(path))
                return
            except (NodeExists, NoNode):
                return
            except ConnectionLost:
                await self._pause()
        raise unavailable(f"ZooKeeper did not answer; whether {node} is cordoned is not known. Try again.")

    # --- helpers -------------------------------------------------------------------------------------------------

    async def _read(self, path: str, kind: type[R], watch: bool = False) -> Versioned[R] | None:
        try:
            got = await self._bounded(self._client.get(path, watch))
        except NoNode:
            return None
        return Versioned(decode(got.data, kind, path), got.stat)

    async def _read_all(self, all_paths: Sequence[str], kind: type[R]) -> list[Versioned[R]]:
        async def one(path: str) -> Versioned[R] | None:
            async with self._reads:
                try:
                    return await self._read(path, kind)
                except BadRecord:
                    return None  # one bad znode must not hide the others; asked for by name it is an error

        found = await asyncio.gather(*(one(path) for path in all_paths))
        return [each for each in found if each is not None]

    async def _names(self, path: str) -> list[str]:
        names = await self._bounded(self._client.children(path))
        return sorted(names)[: self._limits.list_most]

    async def _bounded(self, call: Awaitable[T]) -> T:
        async with asyncio.timeout(self._limits.tree_wait_s):
            return await call

    async def _pause(self) -> None:
        await asyncio.sleep(0.05 + 0.1 * self._rng.random())


def _written(done: Done) -> Stat:
    first = done.results[0]
    assert isinstance(first, Written)
    return first.stat
