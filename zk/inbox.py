"""From other threads to an event loop: a queue that wakes the loop once, not once an item.

Theory of operation. `put` may be called on any thread. It appends to a deque (atomic in CPython) and wakes the loop
with `call_soon_threadsafe` unless a wake-up is under way already; the loop then drains all there is. The flag that
says so is put down by the drain only when it has found the deque empty, and the deque is looked at once more after
that: an item that was appended in between is either seen there, or its producer saw the flag down and wakes the loop
itself. Items run in the order in which they were put. An item that raises is reported to the loop and does not stop
the others.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable


class Inbox:
    """Runs on `loop` what other threads `put`. Bounded by its producers: they put answers and events, never
    requests."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._items: deque[Callable[[], object]] = deque()
        self._awake = False

    def put(self, item: Callable[[], object]) -> None:
        """From any thread. After the loop's end items are dropped: nobody is left to care."""
        self._items.append(item)
        if not self._awake:
            self._awake = True
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        while True:
            try:
                item = self._items.popleft()
            except IndexError:
                self._awake = False
                if not self._items:
                    return
                self._awake = True
                continue
            guarded(self._loop, item)


def guarded(loop: asyncio.AbstractEventLoop, callback: Callable[[], object]) -> None:
    """Call it; hand an exception to the loop's handler, as the loop itself does for its callbacks."""
    try:
        callback()
    except Exception as error:
        loop.call_exception_handler({"message": f"exception in {callback!r}", "exception": error})
