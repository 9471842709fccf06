"""The znodes of deployments, images and idempotency keys, typed. (Those about nodes: `fabric.api.noting`.)

Theory of operation. What all reads and writes keep to is in `fabric.api.reading`. A reply that was lost is looked up:
every create is recognisable (a deployment's id has random characters of ours, a key names its deployment), so that "it
may have happened" becomes a yes or a no.

A deployment comes to be in one transaction: the record, its empty trace, the open marker that makes rack leaders care
for it, and the idempotency key if there is one; and only if the image's record is still the one that was read.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable

from fabric.api.problems import conflict, not_found, unavailable
from fabric.api.reading import UNANSWERED, Records
from fabric.api.reading import Versioned as Versioned
from fabric.api.settings import ApiLimits
from fabric.records import BadRecord, Deployment, Image, Key, LayerName, encode
from zk import paths
from zk.client import TreeClient
from zk.tree import (
    BadVersion,
    Check,
    Create,
    Delete,
    Done,
    MultiFailed,
    NodeExists,
    NoNode,
    SessionChanged,
    Set,
    Stat,
    TreeEvent,
    Written,
)

MOST_IMAGES = 1024
"""Records kept; more are read each time."""


class IdTaken(Exception):
    """Another deployment has this id: make another."""


class KeyTaken(Exception):
    """Another request has used this idempotency key in this moment: read it."""


class ImageChanged(Exception):
    """The image's record is not the one that was read any more: read it again."""


class Store(Records):
    """Of what is read again and again it keeps the images' records, each as long as its watch has not fired."""

    def __init__(self, client: TreeClient, limits: ApiLimits, rng: random.Random) -> None:
        super().__init__(client, limits, rng)
        self._images: dict[str, Versioned[Image]] = {}
        self._image_news = 0
        """Grows with everything that may have changed an image's record."""
        client.tree.listen(self._on_image_news)

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

        def lives(record: Deployment) -> bool:
            ended = record.gone or record.state == "deleted" or (record.state == "failed" and record.final)
            return not ended and wanted(record)

        return [one.record for one in await self.scan(lives) if isinstance(one, Versioned)]

    async def scan(self, keep: Callable[[Deployment], bool]) -> list[Versioned[Deployment] | BadRecord]:
        """Of all records those to `keep`, and what is wrong with those that can't be read."""
        found: list[Versioned[Deployment] | BadRecord] = []
        ids = await self.deployment_ids()
        step = self._limits.list_reads * 8
        for start in range(0, len(ids), step):
            some = [paths.deployment(one) for one in ids[start : start + step]]
            for one in await self._read_each(some, Deployment):
                if isinstance(one, BadRecord) or (one is not None and keep(one.record)):
                    found.append(one)
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
        # Made in a multi a znode tells no stat; set once more, it does.
        ops.append(Set(paths.deployment(record.id), encode(record), 0))
        for _ in range(self._limits.write_tries):
            await self.require_session()
            try:
                done = await self._bounded(self._client.multi(*ops))
            except MultiFailed as failed:
                if failed.index == 0 and isinstance(failed.cause, NodeExists):
                    return await self._mine(record)
                if failed.index == 3:
                    raise ImageChanged from failed
                if failed.index == 4:
                    raise KeyTaken from failed
                raise
            except UNANSWERED:
                await self._pause()
                if await self.find_deployment(record.id) is None:
                    continue
                return await self._mine(record)
            return Versioned(record, _written(done, -1))
        raise unavailable("ZooKeeper did not answer; the deployment was not written. Try again soon.")

    async def _mine(self, record: Deployment) -> Versioned[Deployment]:
        """The record as written; another request's with the same id is told by what differs for certain."""
        found = await self.deployment(record.id)
        now, mine = found.record, record
        if (now.created_ms, now.spec, now.key, now.name) != (mine.created_ms, mine.spec, mine.key, mine.name):
            raise IdTaken
        return found

    async def change(
        self,
        deployment_id: str,
        update: Callable[[Deployment], Deployment | None],
        known: Versioned[Deployment] | None = None,
    ) -> Versioned[Deployment]:
        """Apply `update` to the record and make sure that it is open for a coordinator, in one transaction. `update`
        returns None to leave it as it is. Whoever else changes the record at the same time is seen: `update` is then
        applied to what they wrote. `known`: the record as it was a moment ago; a write that finds another version
        reads it. 409 after `write_tries` lost races."""
        path = paths.deployment(deployment_id)
        marker = paths.open_marker(deployment_id)
        found = known or await self.deployment(deployment_id)
        marked = not found.record.final
        for _ in range(self._limits.write_tries):
            after = update(found.record)
            if after is None and found is known:  # what changes nothing is not checked by a write
                found = await self.deployment(deployment_id)
                after = update(found.record)
            if after is None:
                return found
            await self.require_session()
            opening = Check(marker, -1) if marked else Create(marker)
            try:
                done = await self._bounded(
                    self._client.multi(Set(path, encode(after), found.stat.version), opening)
                )
                return Versioned(after, _written(done, 0))
            except MultiFailed as failed:
                if isinstance(failed.cause, NodeExists):
                    marked = True
                    continue
                if isinstance(failed.cause, NoNode) and failed.index == 1:
                    marked = False
                    continue
                if not isinstance(failed.cause, BadVersion | NoNode):
                    raise
            except UNANSWERED:
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
            return (await self._asked(lambda: self._client.get(paths.trace(deployment_id)))).data
        except NoNode:
            raise not_found("deployment", deployment_id) from None

    # --- idempotency keys ----------------------------------------------------------------------------------------

    async def key(self, digest: str) -> Versioned[Key] | None:
        return await self._read(paths.key(digest), Key)

    # --- images --------------------------------------------------------------------------------------------------

    async def image(self, name: str) -> Versioned[Image] | None:
        return await self._read(paths.image(name), Image)

    async def known_image(self, name: str) -> Versioned[Image] | None:
        """As it is, or was a moment ago: who builds on it checks its version (`create`), and then forgets it."""
        known = self._images.get(name)
        if known is not None:
            return known
        before = self._image_news
        found = await self._read(paths.image(name), Image, watch=True)
        # Its watch may have fired already: what comes after an answer can be told before whoever asked goes on.
        if found is not None and self._image_news == before and len(self._images) < MOST_IMAGES:
            self._images[name] = found
        return found

    def forget_image(self, name: str) -> None:
        self._images.pop(name, None)

    def _on_image_news(self, event: TreeEvent) -> None:
        if isinstance(event, SessionChanged):
            self._images.clear()
        elif event.path.startswith(f"{paths.IMAGES}/"):
            self._images.pop(event.path.rpartition("/")[2], None)
        else:
            return
        self._image_news += 1

    async def image_names(self) -> list[str]:
        return await self._names(paths.IMAGES)

    async def images(self, names: Iterable[str]) -> list[Versioned[Image]]:
        return await self._read_all([paths.image(name) for name in names], Image)

    async def write_image(self, record: Image, fence: str) -> Image | None:
        """Create or replace; returns the record that was there before. `fence` is a znode path that must not exist: see
        `fabric.api.contents`. Raises MultiFailed with index 0 when it does."""
        path, data = paths.image(record.name), encode(record)
        for _ in range(self._limits.write_tries):
            await self.require_session()
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
            except UNANSWERED:
                pass
            await self._pause()
        raise unavailable(f"The record of image {record.name} could not be written; push it again.")

    async def delete_image(self, image: Versioned[Image]) -> bool:
        """False when it changed meanwhile."""
        try:
            await self._bounded(self._client.delete(paths.image(image.record.name), image.stat.version))
        except (BadVersion, NoNode):
            return False
        except UNANSWERED:
            await self._pause()
            return await self.image(image.record.name) is None
        return True

    async def raise_fence(self, path: str) -> bool:
        """Create an ephemeral znode; False when it is there already."""
        await self.require_session()
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
        members = await asyncio.gather(*(self._names(paths.rack_members(layer, one)) for one in others))
        return [rack for rack, nodes in zip(others, members, strict=True) if nodes]


def _written(done: Done, index: int) -> Stat:
    written = done.results[index]
    assert isinstance(written, Written)
    return written.stat
