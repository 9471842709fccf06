"""The load of a scenario: requests at a rate, as users make them, on an event loop in a thread of its own.

What a request is, how it is tried again and followed, is that of every load (fabric.load); so is the open loop, in
which one that finds `most` open is left out and counted. Here is what a scenario may say of it: sizes, how many stand,
which of them ignore TERM.

`stop` begins no more requests; `idle` says when none is open. Only what is open at `close` is cut off, and stays in the
history as what it is: a request without an answer or an end.
"""

from __future__ import annotations

import asyncio
import random
import threading
from dataclasses import dataclass, field

from fabric.chaos.script import Load
from fabric.load import generator
from fabric.load.asking import Asker
from fabric.load.generator import Counters, Rate
from fabric.load.history import Clock, History, Kind
from fabric.load.http import Connections
from fabric.load.stock import Mix, Stock

STOP_WAIT_S = 5.0
STOP_GRACE_S = 5
"""What the API wants between `stop_after_s` and `lost_after_s`."""


@dataclass
class Generator:
    """`images`: names of published ones. `start`, `stop`, `close`, from any one thread. `run`: a text that no other
    run has: for idempotency keys."""

    api: str
    load: Load
    images: tuple[str, ...]
    history: History
    clock: Clock
    rng: random.Random
    run: str
    counters: Counters = field(default_factory=Counters)
    _stock: Stock = field(default_factory=Stock)
    _thread: threading.Thread | None = None
    _loop: asyncio.AbstractEventLoop | None = None
    _left: asyncio.Event | None = None
    _inner: generator.Generator | None = None

    def start(self) -> None:
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main(ready)), name="load", daemon=True)
        self._thread.start()
        ready.wait(STOP_WAIT_S)

    def stop(self) -> None:
        """Begin no more."""
        if self._inner is not None:
            self._inner.stop()

    @property
    def idle(self) -> bool:
        """Nothing is open."""
        return self.counters.open == 0

    def close(self) -> None:
        """Cut off what is open."""
        self.stop()
        if self._thread is None or self._loop is None or self._left is None:
            return
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._left.set)
            self._thread.join(STOP_WAIT_S)

    def busy(self) -> frozenset[str]:
        """Deployments that an open request changes."""
        return self._stock.busy()

    def wanted(self, deployment: str, ordinal: int) -> bool:
        """By the last request that was accepted; also of a deployment that is not of this load."""
        return self._stock.wanted(deployment, ordinal)

    def stop_after_s(self, deployment: str) -> int:
        return int(self.load.stop_after) if deployment in self._stock.counts else 0

    async def _main(self, ready: threading.Event) -> None:
        self._loop, self._left = asyncio.get_running_loop(), asyncio.Event()
        load = self.load
        async with Connections(self.api) as connections:
            self._inner = generator.Generator(
                Asker(connections, self.history, self.clock, self.run),
                Rate(load.per_s, load.most, "skip"),
                Mix(0.0, load.scale, 1.0 - load.scale, load.keep),
                self._draw,
                self.rng,
                self.clock,
                counters=self.counters,
                stock=self._stock,
            )
            ready.set()
            running = asyncio.create_task(self._inner.run())
            await self._left.wait()
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    def _draw(self, kind: Kind) -> tuple[int, dict[str, object]]:
        count = self.rng.randint(*self.load.count)
        if kind == "scale":
            return count, {"count": count}
        stubborn = self.rng.random() < self.load.stubborn
        stop_after_s = int(self.load.stop_after)
        return count, {
            "image": self.rng.choice(self.images),
            "flavor": self.load.flavor,
            "count": count,
            "lost_after_s": max(int(self.load.lost_after), stop_after_s + STOP_GRACE_S if stop_after_s else 0),
            "stop_after_s": stop_after_s,
            "environment": {"STUBBORN": "1"} if stubborn else {},
        }
