"""Waiting for znodes to change, for the long-polls and event streams of many clients.

A watch of ZooKeeper is one-shot and belongs to the session. So who follows a znode does this, for ever: read it with a
watch, use what was read, wait for the signal, read again. The signal is also given when the session is connected anew,
because what happened meanwhile was not seen. Followers are counted and bounded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from fabric.api.problems import unavailable
from zk.tree import SessionChanged, SessionState, TreeEvent, WatchFired


class Watches:
    """Give it every event of the tree. `closing` is set when the process is about to end: followers give up then."""

    def __init__(self, most: int) -> None:
        self.closing = False
        self._most = most
        self._signals: dict[str, set[asyncio.Event]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def on_event(self, event: TreeEvent) -> None:
        match event:
            case WatchFired(path):
                self.signal(path)
            case SessionChanged(SessionState.CONNECTED, _):
                self._signal_all()
            case _:
                pass

    def signal(self, path: str) -> None:
        """To those who follow it: look."""
        for signal in self._signals.get(path, ()):
            signal.set()

    def close(self) -> None:
        self.closing = True
        self._signal_all()

    def require_room(self) -> None:
        """503 when there are too many followers."""
        if self._count >= self._most:
            raise unavailable(f"{self._most} clients wait for changes already; ask without waiting, or later.", 5)

    @contextmanager
    def following(self, path: str) -> Iterator[asyncio.Event]:
        """The signal for `path`, while the context lasts. 503 when there are too many followers."""
        self.require_room()
        signal = asyncio.Event()
        if self.closing:
            signal.set()
        self._count += 1
        self._signals.setdefault(path, set()).add(signal)
        try:
            yield signal
        finally:
            self._count -= 1
            rest = self._signals[path]
            rest.discard(signal)
            if not rest:
                del self._signals[path]

    def _signal_all(self) -> None:
        for signals in self._signals.values():
            for signal in signals:
                signal.set()


async def wait_signal(signal: asyncio.Event, wait_s: float) -> bool:
    """True when it was given, and takes it down again."""
    try:
        async with asyncio.timeout(max(0.0, wait_s)):
            await signal.wait()
    except TimeoutError:
        return False
    signal.clear()
    return True
