"""Watching a fabric while it runs: a sample every SAMPLE_S, given to the judge (watching.py) at once.

Theory of operation. One thread with an event loop and a ZooKeeper session of its own. A sample is: members, then all
processes, then members again; a node counts as present when it is in both. Where the stores are looked at, only names
and sizes are (HOLDERS_EVERY_S). What was seen last is kept for who chooses whom to hit (`latest`).

`ask` runs any look of eye.py on the thread's loop, for others: `look` at the end goes through it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from fabric.chaos import eye, scan
from fabric.chaos.watching import Watching
from fabric.chaos.world import Running, Sample
from fabric.load.history import Clock
from fabric.records import BadRecord
from zk.client import TreeClient
from zk.connect import Unreachable
from zk.session_tree import SessionTree
from zk.tree import TreeError

SAMPLE_S = 0.2
HOLDERS_EVERY_S = 1.0
LOOK_WAIT_S = 2.0
ASK_WAIT_S = 20.0
OPEN_WAIT_S = 30.0
SESSION_S = 10.0
T = TypeVar("T")
log = logging.getLogger(__name__)


class CannotLook(Exception):
    """ZooKeeper did not answer, and why."""


class Watcher:
    """`racks`: of the fabric; `storage`: its storage nodes; `digests`: of the images whose holders are watched;
    `busy`: see Sample. `open`, then `close`, from any one thread; `watching` may be read by all."""

    def __init__(
        self,
        hosts: str,
        nodes: Path,
        racks: tuple[str, ...],
        storage: tuple[str, ...],
        watching: Watching,
        clock: Clock,
        busy: Callable[[], frozenset[str]],
    ) -> None:
        self.nodes, self.racks, self.storage = nodes, racks, storage
        self.watching, self.clock, self.busy = watching, clock, busy
        self.digests: tuple[str, ...] = ()
        self.latest: eye.Present = eye.Present({}, {}, {}, ())
        self.running: dict[Running, tuple[int, ...]] = {}
        self.trouble = ""
        """Why nothing could be watched; "" as long as all is well."""
        self._processes = scan.Processes(nodes)
        self._hosts = hosts
        self._holders: dict[str, frozenset[str]] = {}
        self._holders_at = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: TreeClient | None = None
        self._left: asyncio.Event | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def open(self) -> None:
        """Raises CannotLook."""
        self._thread.start()
        self._ready.wait(OPEN_WAIT_S + 1)
        if self.trouble or self._client is None:
            raise CannotLook(self.trouble or f"ZooKeeper at {self._hosts} did not answer within {OPEN_WAIT_S:g} s")

    def close(self) -> None:
        if self._loop is not None and self._left is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._left.set)
            self._thread.join(ASK_WAIT_S)

    def ask(self, look: Callable[[TreeClient], Awaitable[T]], wait_s: float = ASK_WAIT_S) -> T:
        """Raises CannotLook."""
        assert self._loop, "open first"
        asked = asyncio.run_coroutine_threadsafe(self._asked(look, wait_s), self._loop)
        try:
            return asked.result(wait_s + 1)
        except (TreeError, BadRecord, TimeoutError) as error:
            raise CannotLook(str(error) or f"ZooKeeper did not answer within {wait_s:g} s") from None

    async def _asked(self, look: Callable[[TreeClient], Awaitable[T]], wait_s: float) -> T:
        assert self._client
        async with asyncio.timeout(wait_s):
            return await look(self._client)

    # --- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except (TreeError, Unreachable, OSError) as error:
            self.trouble = str(error)
        except Exception:
            log.exception("the watcher ended")
            self.trouble = "the watcher ended by a fault of its own; see its traceback"
        finally:
            self._ready.set()

    async def _main(self) -> None:
        self._loop, self._left = asyncio.get_running_loop(), asyncio.Event()
        tree = SessionTree(self._hosts, session_timeout_s=SESSION_S)
        try:
            await tree.open(wait_s=OPEN_WAIT_S)
            self._client = TreeClient(tree)
            self._ready.set()
            while not self._left.is_set():
                began = time.monotonic()
                await self._sample()
                with suppress(TimeoutError):
                    async with asyncio.timeout(max(0.02, began + SAMPLE_S - time.monotonic())):
                        await self._left.wait()
        finally:
            await tree.close()

    async def _sample(self) -> None:
        before = await self._look(eye.members)
        self.running = self._processes.look()
        at_s = self.clock.now()
        after = await self._look(eye.present) if before is not None else None
        both = frozenset(before) & frozenset(after.compute) if before is not None and after is not None else None
        if after is not None:
            self.latest = after
        sample = Sample(at_s, both, frozenset(self.running), self.busy(), self._look_at_stores(after))
        self.watching.feed(sample)

    async def _look(self, look: Callable[[TreeClient, tuple[str, ...]], Awaitable[T]]) -> T | None:
        assert self._client
        try:
            async with asyncio.timeout(LOOK_WAIT_S):
                return await look(self._client, self.racks)
        except (TreeError, BadRecord, TimeoutError):
            return None

    def _look_at_stores(self, now: eye.Present | None) -> dict[str, frozenset[str]]:
        """{} when it is not time, or nobody can say who is present."""
        if now is None or not self.digests or time.monotonic() < self._holders_at:
            return {}
        self._holders_at = time.monotonic() + HOLDERS_EVERY_S
        here = [node for node in self.storage if node in now.storage]
        return scan.holders(self.nodes, here, self.digests, whole=False)
