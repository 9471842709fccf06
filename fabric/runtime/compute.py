"""What a compute agent has besides bus and tree: a driver with its instances, and a cache of unpacked images.

An image that the role wants is pinned in the cache from that moment to its release, so that no other image pushes out
what instances run from; at start this matters most, since the pins of the agent before are not kept. The cache alone
knows what is here: an image that it has is told as ready at once, without a thread or a file, since that is what most
requests find.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from fabric.drivers.base import Driver, OnExit, StartFailed
from fabric.effects import (
    Effect,
    FetchImage,
    FetchLog,
    ImageReady,
    Input,
    MoreHolders,
    ReleaseImage,
    StartInstance,
    StopInstance,
)
from fabric.images.cache import ImageCache
from fabric.images.errors import NotCached
from fabric.images.fetch import fetch
from fabric.images.protocol import Holder
from fabric.messages import HolderRef
from fabric.runtime.fetches import Fetches, Obtained, Talk
from fabric.runtime.instances import Runner
from fabric.runtime.settings import AgentConfig
from fabric.runtime.sharing import Sharing

PIN = "agent"


class ComputeWorld:
    """Made and used on the loop. `emit` is called on it, never from inside `perform`."""

    data_endpoint = ""

    def __init__(self, config: AgentConfig, emit: Callable[[Input], None]) -> None:
        self._config = config
        self._emit = emit
        self._runner = Runner(self._make_driver, emit)
        self._fetches = Fetches(self._obtain, emit)
        self._found: list[Input] = []
        self._cache: ImageCache
        self._sharing: Sharing
        self._open = False

    async def open(self) -> None:
        """Raises DriverError, ImageError, OSError."""
        config = self._config
        self._cache = await asyncio.to_thread(ImageCache, config.state_dir / "cache", config.cache_bytes)
        self._sharing = Sharing(config, self._cache)
        try:
            self._found = await self._runner.adopt()
        except BaseException:
            self._cache.close()
            raise
        self._open = True

    def first(self) -> Sequence[Input]:
        """What the role is told at start."""
        found, self._found = self._found, []
        return found

    def perform(self, effect: Effect) -> None:
        match effect:
            case StartInstance():
                self._runner.start(effect, self._unpacked)
            case StopInstance():
                self._runner.stop(effect)
            case FetchImage(digest, holders):
                self._want(digest, holders)
            case MoreHolders(digest, holders):
                self._fetches.more(digest, holders)
            case ReleaseImage(digest):
                self._cache.unpin(digest, PIN)
            case FetchLog(token, instance, max_bytes):
                self._runner.log(token, instance, max_bytes)
            case _:
                raise TypeError(f"expected an effect of a compute agent, found {effect}")

    async def close(self) -> None:
        """Instances run on."""
        if self._open:
            self._open = False
            await self._fetches.close()
            await self._runner.close()
            await self._sharing.close()
            self._cache.close()

    def _make_driver(self, on_exit: OnExit) -> Driver:
        config = self._config
        if config.driver == "null":
            from fabric.drivers.null import NullDriver

            return NullDriver(on_exit)
        from fabric.drivers.process import ProcessDriver

        return ProcessDriver(config.state_dir, on_exit, lifeline_fd=config.lifeline_fd)

    def _want(self, digest: str, holders: Sequence[HolderRef]) -> None:
        here = None if self._fetches.is_under_way(digest) else self._cache.ready(digest, PIN)
        if here is not None:
            ready = ImageReady(digest, (), (), here.bytes, 0, 0, cached=True)
            asyncio.get_running_loop().call_soon(self._tell, ready)
            return
        with suppress(NotCached):
            self._cache.pin(digest, PIN)
        self._fetches.want(digest, holders)

    def _tell(self, news: Input) -> None:
        if self._open:
            self._emit(news)

    def _unpacked(self, digest: str) -> tuple[Path, Path]:
        try:
            prepared = self._cache.where(digest)
        except NotCached as error:
            raise StartFailed(str(error), "node") from None
        return prepared.root, prepared.entrypoint

    def _obtain(self, digest: str, holders: Sequence[Holder], talk: Talk) -> Obtained:
        """On a fetch's thread."""
        began = time.monotonic()
        if self._cache.get(digest, pin=PIN) is not None:
            return Obtained(self._cache.bytes_of(digest), None, _ms_since(began))

        def progress(done: int, total: int) -> None:
            if not done:
                self._cache.incoming(digest, total)  # now that the size is known: make room, or give up
            talk.progress(done, total)

        blob = self._cache.incoming(digest, 0)
        report = fetch(
            digest,
            holders,
            blob,
            more=talk.more,
            cancelled=talk.cancelled,
            progress=progress,
            neighbours=self._sharing.neighbours,
            place=self._cache.limits,
        )
        began, pieces = time.monotonic(), self._sharing.pieces
        pieces.moving(digest)
        try:
            self._cache.admit(digest, blob, report.placed, pin=PIN)
            pieces.settled(digest)
        finally:
            pieces.end(digest)
        return Obtained(report.manifest.size, report, _ms_since(began))


def _ms_since(began: float) -> int:
    return int((time.monotonic() - began) * 1000)
