"""The contents behind image names: who still needs one, and its end when nobody does.

Contents are shared: two names may mean the same bytes, and a deployment goes on needing what its name meant when it was
made, for the nodes it may move to. So a content is dropped when neither a name nor an active deployment refers to it;
whichever reference ends last, the check comes with it.

The race to lose is: nobody refers to a content, so it is dropped, while a push of the same bytes is acknowledged. A
fence settles it. Dropping holds an ephemeral znode, named after the content, from before it looks for references until
the holders have dropped. Writing an image's record is one transaction that creates and deletes the same znode, so it
fails while a drop is under way; and after it was written, the writer asks the holders whether they still have it. So
either the drop sees the name, or the writer sees the loss and says "push it again"; never is a name left with nothing
behind it and nobody told.
"""

from __future__ import annotations

import asyncio
import logging

from fabric.api.control import ControlPlane
from fabric.api.problems import unavailable
from fabric.commands import DropImage, Dropped
from fabric.images.protocol import Holder
from fabric.images.push import REDUNDANCY
from fabric.messages import Holders
from fabric.records import Image
from zk import paths
from zk.tree import MultiFailed, NodeExists, NoNode, TreeError

_log = logging.getLogger("fabric.api")
LOOK_EVERY_S = 0.1
FENCE_TRIES = 80
HELD_TRIES = 30
WANT = 16


def fence_of(digest: str) -> str:
    return paths.drop_fence(digest.partition(":")[2])


class Contents:
    def __init__(self, control: ControlPlane) -> None:
        self._control = control
        self._store = control.store

    async def holders(self, digest: str, want: int = WANT) -> Holders:
        return await self._control.find_holders(digest, want, self._control.limits.holders_wait_s)

    async def name(self, record: Image, holders: tuple[Holder, ...]) -> None:
        """Give pushed content its name, and let go of what the name meant before. Returns when the record is written
        and two holders in different racks were heard to have it; 503 when they do not."""
        before: Image | None = None
        for _ in range(FENCE_TRIES):
            try:
                before = await self._store.write_image(record, fence_of(record.digest))
                break
            except MultiFailed as failed:
                if not isinstance(failed.cause, NodeExists):
                    raise
                await asyncio.sleep(LOOK_EVERY_S)  # the same content is just being dropped
        else:
            raise unavailable(f"Content {record.digest} has been about to be dropped for too long; push it again.")
        if not await self._is_held(record.digest, holders):
            raise unavailable(
                f"The holders of {record.name} do not have it any more, though they had taken it; push it again."
            )
        if before is not None and before.digest != record.digest:
            self._control.spawn(self.let_go(before.digest), f"content {before.digest}")

    async def _is_held(self, digest: str, holders: tuple[Holder, ...]) -> bool:
        """By those who took it, in `REDUNDANCY` racks. What a store has just taken its agent learns a moment later."""
        rack_of = {holder.node: holder.rack for holder in holders}
        for _ in range(HELD_TRIES):
            found = (await self.holders(digest)).found
            if len({rack_of[node] for node in found if node in rack_of}) >= REDUNDANCY:
                return True
            await asyncio.sleep(LOOK_EVERY_S)
        return False

    async def let_go(self, digest: str) -> None:
        """Drop it unless something refers to it; trouble is logged: what is not dropped now costs room, no more."""
        try:
            await self.drop(digest)
        except (TreeError, TimeoutError) as error:
            _log.warning("content %s may be left behind without a name: %s", digest, error)

    async def left_by(self, image: str, digest: str) -> None:
        """A deployment that used it is being deleted. Mostly the name still means it. (Should that be old news by an
        instant, the storage agents find later that nothing names it: `roles/leftovers.py`.)"""
        found = await self._store.known_image(image)
        if found is None or found.record.digest != digest:
            await self.let_go(digest)

    async def names_of(self, digest: str) -> list[str]:
        names = await self._store.image_names()
        return [found.record.name for found in await self._store.images(names) if found.record.digest == digest]

    async def drop(self, digest: str, force: bool = False) -> int:
        """Bytes freed; 0 when a name, or an active deployment, refers to it (`force`: deployments do not count)."""
        fence = fence_of(digest)
        if not await self._store.raise_fence(fence):
            return 0  # somebody else is at it
        try:
            if await self.names_of(digest):
                return 0
            if not force and await self._store.active(lambda record: record.spec.digest == digest):
                return 0
            gathered = await self._control.call_racks("storage", DropImage(digest))
            silent = [*gathered.silent_racks, *(node for reply in gathered.replies for node in reply.silent)]
            if silent:
                _log.warning("content %s: %s did not answer, and may keep a copy", digest, ", ".join(silent))
            return sum(
                answer.freed_bytes
                for reply in gathered.replies
                for _, answer in reply.results
                if isinstance(answer, Dropped)
            )
        finally:
            try:
                await self._store.lower_fence(fence)
            except NoNode:
                pass
            except (TreeError, TimeoutError) as error:
                _log.warning("%s stays until this session ends: %s", fence, error)
