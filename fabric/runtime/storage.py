"""What a storage agent has besides bus and tree: a chunk store, the server of its chunks, its scrubber, and copies from
other holders.

The role hears of the store by `StoreChanged`: at once when an image came or went or the scrubber found a rotten chunk,
and within `LOOK_S` of anything else (readers come and go, a reader met a rotten chunk, the disk filled up).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress

from fabric.effects import (
    ContentDropped,
    DropContent,
    Effect,
    FetchImage,
    FetchLog,
    Input,
    LogFetched,
    MoreHolders,
    StoreChanged,
)
from fabric.images.intake import Intake
from fabric.images.manifest import Buffer
from fabric.images.protocol import Holder
from fabric.images.replicate import replicate
from fabric.images.scrub import Scrubber
from fabric.images.server import ChunkServer
from fabric.images.store import ChunkStore
from fabric.runtime.fetches import Fetches, Obtained, Talk
from fabric.runtime.settings import AgentConfig
from fabric.runtime.stepping import Stepping

LOOK_S = 1.0
FREE_STEP = 0.01
"""A change of the free bytes by less than this share of them is not told by itself."""

log = logging.getLogger(__name__)


class _Observed(ChunkStore):
    """A chunk store that says when an image came or went; on whatever thread that happened."""

    changed: Callable[[], None] = staticmethod(lambda: None)

    def commit(self, push_id: str, manifest_bytes: Buffer) -> str:
        digest = super().commit(push_id, manifest_bytes)
        self.changed()
        return digest

    def drop(self, digest: str) -> bool:
        dropped = super().drop(digest)
        self.changed()
        return dropped


class StorageWorld:
    """Made and used on the loop. `emit` is called on it, never from inside `perform`."""

    def __init__(
        self,
        config: AgentConfig,
        emit: Callable[[Input], None],
        stepping: Stepping | None = None,
    ) -> None:
        self._config = config
        self._emit = emit
        self._stepping = stepping
        self._loop = asyncio.get_running_loop()
        self._fetches = Fetches(self._replicate, emit)
        self._dropping = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._told: StoreChanged | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._store: _Observed
        self._server: ChunkServer
        self._scrubber: Scrubber
        self._open = False
        self.data_endpoint = ""

    async def open(self) -> None:
        """Raises ImageError, OSError."""
        config = self._config
        self._store = await asyncio.to_thread(_Observed, config.state_dir / "store", config.store_bytes)
        self._server = ChunkServer(
            self._store,
            f"tcp://{config.data_listen}",
            intake=Intake(self._store),
            advertise=config.advertise,
            watcher=self._stepping,
        )
        try:
            self.data_endpoint = self._server.start()
        except BaseException:
            self._store.close()
            raise
        self._open = True
        self._store.changed = self._changed
        self._scrubber = Scrubber(self._store, config.scrub_mib_s, config.scrub_every_s, self._changed)
        self._scrubber.start()

    def first(self) -> Sequence[Input]:
        """What the role is told at start."""
        self._timer = self._loop.call_later(LOOK_S, self._look)
        self._told = self._seen()
        return [self._told]

    def perform(self, effect: Effect) -> None:
        match effect:
            case FetchImage(digest, holders):
                self._fetches.want(digest, holders)
            case MoreHolders(digest, holders):
                self._fetches.more(digest, holders)
            case DropContent():
                self._spawn(self._drop(effect))
            case FetchLog(token):
                self._loop.call_soon(self._emit, LogFetched(token, False, b""))
            case _:
                raise TypeError(f"expected an effect of a storage agent, found {effect}")

    async def close(self) -> None:
        if not self._open:
            return
        self._open = False
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        await self._fetches.close()
        await asyncio.to_thread(self._scrubber.stop)
        await asyncio.to_thread(self._server.stop)
        await asyncio.to_thread(self._store.close)

    # --- the store ---------------------------------------------------------------------------------------------------

    def _seen(self) -> StoreChanged:
        held = tuple(image.digest for image in self._store.held())
        damaged = tuple(self._store.damaged())
        return StoreChanged(held, self._store.free_bytes(), self._server.counters().peers, damaged)

    def _changed(self) -> None:
        """On any thread."""
        with suppress(RuntimeError):  # the loop is closed: the agent has left
            self._loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        if self._open and self._told is not None:
            self._told = self._seen()
            self._emit(self._told)

    def _look(self) -> None:
        told, seen = self._told, self._seen()
        assert told is not None
        if (
            seen.held != told.held
            or seen.damaged != told.damaged
            or seen.busy != told.busy
            or abs(seen.free_bytes - told.free_bytes) > FREE_STEP * told.free_bytes
        ):
            self._told = seen
            self._emit(seen)
        if self._open:
            self._timer = self._loop.call_later(LOOK_S, self._look)

    def _replicate(self, digest: str, holders: Sequence[Holder], talk: Talk) -> Obtained:
        """On a fetch's thread."""
        if self._store.has(digest):
            return Obtained(0, None, 0)
        report = replicate(
            self._store,
            digest,
            holders,
            more=talk.more,
            cancelled=talk.cancelled,
            progress=talk.progress,
        )
        return Obtained(report.manifest.size, report, 0)

    async def _drop(self, effect: DropContent) -> None:
        async with self._dropping:
            before = self._store.used_bytes()
            try:
                await asyncio.to_thread(self._store.drop, effect.digest)
            except Exception:
                log.exception("image %s can't be removed from the disk", effect.digest)
            freed = max(0, before - self._store.used_bytes())
        if self._open:
            self._emit(ContentDropped(effect.token, freed))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
