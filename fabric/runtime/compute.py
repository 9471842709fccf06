"""What a compute agent has besides bus and tree: a driver with its instances, and a cache of unpacked images.

An image that the role wants is pinned in the cache from that moment to its release, so that no other image pushes out
what instances run from; at start this matters most, since the pins of the agent before are not kept.
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
    Input,
    MoreHolders,
    ReleaseImage,
    StartInstance,
    StopInstance,
)
from fabric.images.archive import Prepared
from fabric.images.cache import ImageCache
from fabric.images.errors import NotCached
from fabric.images.fetch import fetch
from fabric.images.protocol import Holder
from fabric.runtime.bus import SocketContext
from fabric.runtime.fetches import Fetches, Obtained, Talk
from fabric.runtime.instances import Runner
from fabric.runtime.settings import AgentConfig

PIN = "agent"


class ComputeWorld:
    """Made and used on the loop. `emit` is called on it, never from inside `perform`."""

    data_endpoint = ""

    def __init__(self, config: AgentConfig, context: SocketContext, emit: Callable[[Input], None]) -> None:
        self._config = config
        self._context = context
        self._runner = Runner(self._make_driver, emit)
        self._fetches = Fetches(self._obtain, emit)
        self._prepared: dict[str, Prepared] = {}
        self._found: list[Input] = []
        self._cache: ImageCache
        self._open = False

    async def open(self) -> None:
        """Raises DriverError, ImageError, OSError."""
        config = self._config
        self._cache = await asyncio.to_thread(ImageCache, config.state_dir / "cache", config.cache_bytes)
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
                with suppress(NotCached):
                    self._cache.pin(digest, PIN)
                self._fetches.want(digest, holders)
            case MoreHolders(digest, holders):
                self._fetches.more(digest, holders)
            case ReleaseImage(digest):
                self._prepared.pop(digest, None)
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
            self._cache.close()

    def _make_driver(self, on_exit: OnExit) -> Driver:
        config = self._config
        if config.driver == "null":
            from fabric.drivers.null import NullDriver

            return NullDriver(on_exit)
        from fabric.drivers.process import ProcessDriver

        return ProcessDriver(config.state_dir, on_exit, lifeline_fd=config.lifeline_fd)

    def _unpacked(self, digest: str) -> tuple[Path, Path]:
        prepared = self._prepared.get(digest)
        if prepared is None:
            raise StartFailed(f"image {digest} is not in the cache", "node")
        return prepared.root, prepared.entrypoint

    def _obtain(self, digest: str, holders: Sequence[Holder], talk: Talk) -> Obtained:
        """On a fetch's thread."""
        began = time.monotonic()
        prepared = self._cache.get(digest, pin=PIN)
        if prepared is not None:
            self._prepared[digest] = prepared
            taken = next((image.bytes for image in self._cache.images() if image.digest == digest), 0)
            return Obtained(taken, None, _ms_since(began))

        def progress(done: int, total: int) -> None:
            if not done:
                self._cache.incoming(digest, total)  # now that the size is known: make room, or give up
            talk.progress(done, total)

        blob = self._cache.incoming(digest, 0)
        report = fetch(
            digest,
            holders,
            blob,
            context=self._context,
            more=talk.more,
            cancelled=talk.cancelled,
            progress=progress,
        )
        began = time.monotonic()
        self._prepared[digest] = self._cache.admit(digest, blob, pin=PIN)
        return Obtained(report.manifest.size, report, _ms_since(began))


def _ms_since(began: float) -> int:
    return int((time.monotonic() - began) * 1000)
