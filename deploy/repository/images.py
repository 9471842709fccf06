"""image://name: a content from the fabric's own image store, where two storage agents hold it.

Theory of operation. As an agent does (fabric.roles.finder): the image's record in ZooKeeper says its digest; a storage
leader, found in ZooKeeper too and asked over the bus, says who holds it; then the chunks come from these holders at
once, each checked by its hash (fabric.images.fetch), in a thread. A leader that does not answer is passed over for
another, holders that fail are excluded when more are asked for.

The record is read again when it is older than `FRESH_S`: an image that is pushed anew under its name has another
digest, and 10,000 siblings need not all read it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from deploy.resolved import Unresolved
from fabric.images.errors import ImageError
from fabric.images.fetch import fetch
from fabric.images.protocol import Holder
from fabric.messages import AnyMessage, FindHolders, Holders
from fabric.records import BadRecord, Image, Leader, decode
from fabric.roles.leaders import nearest
from fabric.runtime.bus import Bus, SocketContext
from fabric.wire import Codec
from zk import paths
from zk.client import TreeClient
from zk.connect import Unreachable
from zk.tree import NoNode, Tree, TreeError

FRESH_S = 1.0
FIND_TRIES = 6
ANSWER_WAIT_S = 2.0
FETCH_S = 600.0
WANTED_HOLDERS = 2
AT_ONCE = 2
"""Each takes one of the loop's threads for as long as it lasts."""
MAX_KNOWN = 1_000


@dataclass(frozen=True, slots=True)
class ImageAccess:
    """`tree`: a session with the fabric's ZooKeeper, opened when it is first asked for. `key`: its cluster key."""

    tree: Callable[[], Awaitable[Tree]]
    key: bytes | None
    context: SocketContext


class ImageSource:
    """Made on the loop. Whatever goes wrong is an Unresolved."""

    def __init__(self, access: ImageAccess) -> None:
        self._access = access
        self._loop = asyncio.get_running_loop()
        self._guid = uuid4().hex
        self._bus: Bus[AnyMessage] | None = None
        self._asked: dict[str, asyncio.Future[Holders]] = {}
        self._records: dict[str, tuple[float, Image]] = {}
        self._cancelled = threading.Event()
        self._slots = asyncio.Semaphore(AT_ONCE)

    async def record(self, name: str) -> Image:
        """What the fabric knows of the image. Raises Unresolved."""
        now = self._loop.time()
        known = self._records.get(name)
        if known is not None and now - known[0] < FRESH_S:
            return known[1]
        path = paths.image(name)
        try:
            record = decode((await (await self._tree()).get(path)).data, Image, path)
        except NoNode:
            raise Unresolved(
                f"image://{name}: expected an image of this name in the fabric, found none", False
            ) from None
        except BadRecord as error:
            raise Unresolved(f"image://{name}: {error}", again=False) from None
        except TreeError as error:
            raise Unresolved(f"image://{name}: ZooKeeper: {error}", again=True) from None
        if len(self._records) >= MAX_KNOWN:
            self._records.clear()
        self._records[name] = (now, record)
        return record

    async def bring(self, image: Image, into: Path) -> None:
        """The whole content into the file `into`, which does not exist yet. Raises Unresolved."""
        holders = await self._holders(image, ())

        def more(excluded: frozenset[str]) -> list[Holder]:
            """On the fetch's thread."""
            asked = asyncio.run_coroutine_threadsafe(self._holders(image, tuple(sorted(excluded))[:16]), self._loop)
            with suppress(Unresolved, FutureTimeoutError):
                return asked.result(FIND_TRIES * ANSWER_WAIT_S)
            return []

        def run() -> None:
            fetch(image.digest, holders, into, more=more, cancelled=self._cancelled, deadline_s=FETCH_S)

        try:
            async with self._slots:
                await asyncio.to_thread(run)
        except ImageError as error:
            raise Unresolved(f"image://{image.name}: {error}", again=True) from None

    async def close(self) -> None:
        self._cancelled.set()
        if self._bus is not None:
            self._bus.close()

    async def _holders(self, image: Image, exclude: tuple[str, ...]) -> list[Holder]:
        """From a storage leader: a few of them are asked one after the other. Raises Unresolved."""
        why = "no storage rack has a leader"
        for attempt in range(FIND_TRIES):
            if attempt:
                await asyncio.sleep(0.1 * 2**attempt)
            try:
                tree = await self._tree()
                racks = nearest(image.digest, await tree.children(paths.leaders("storage")), FIND_TRIES)
                if not racks:
                    continue
                path = paths.leader("storage", racks[attempt % len(racks)])
                leader = decode((await tree.get(path)).data, Leader, path)
            except (TreeError, BadRecord) as error:
                why = str(error)
                continue
            ask = FindHolders(uuid4().hex, image.digest, WANTED_HOLDERS, exclude, self._guid, bool(attempt or exclude))
            answer = await self._ask(leader.address, ask)
            if answer is None:
                why = f"{leader.node}, a storage leader, did not answer"
            elif not answer.leads:
                why = f"{leader.node} leads no more"
            elif answer.chosen:
                return [Holder(ref.node, ref.rack, ref.endpoint) for ref in answer.chosen]
            else:
                why = "no storage agent has a whole copy"
        raise Unresolved(f"image://{image.name}: expected to find who holds {image.digest}, found: {why}", again=True)

    async def _ask(self, address: str, ask: FindHolders) -> Holders | None:
        if self._bus is None:
            self._bus = Bus(self._access.context, Codec(self._access.key), self._guid, on_message=self._hear)
        answer: asyncio.Future[Holders] = self._loop.create_future()
        self._asked[ask.call] = answer
        try:
            self._bus.send(address, ask)
            async with asyncio.timeout(ANSWER_WAIT_S):
                return await answer
        except TimeoutError:
            return None
        finally:
            del self._asked[ask.call]

    def _hear(self, sender: str, message: AnyMessage) -> None:
        if isinstance(message, Holders):
            waiting = self._asked.get(message.call)
            if waiting is not None and not waiting.done():
                waiting.set_result(message)

    async def _tree(self) -> TreeClient:
        try:
            return TreeClient(await self._access.tree())
        except (Unreachable, TreeError) as error:
            raise Unresolved(f"the fabric's ZooKeeper: {error}", again=True) from None
