"""The supervisor's loop: file descriptors that become ready, and timers. One thread. Standard library only."""

from __future__ import annotations

import heapq
import math
import selectors
import time

from fabric.drivers.procfs import complain

TYPE_CHECKING = False  # as in instance.py
if TYPE_CHECKING:
    from collections.abc import Callable

RETRY_S = 0.01


class Reactor:
    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = 0

    def watch(self, fd: int, ready: Callable[[], None]) -> None:
        self.selector.register(fd, selectors.EVENT_READ, ready)

    def unwatch(self, fd: int) -> None:
        """Also when it is not watched."""
        if fd >= 0 and fd in self.selector.get_map():
            self.selector.unregister(fd)

    def later(self, delay_s: float, call: Callable[[], None]) -> None:
        self._serial += 1
        heapq.heappush(self._timers, (time.monotonic() + delay_s, self._serial, call))

    def turn(self, wait_s: float) -> None:
        """Wait, for ever if it must be, until something is ready or due, and do it."""
        if self._timers:
            wait_s = min(wait_s, max(0.0, self._timers[0][0] - time.monotonic()))
        for key, _ in self.selector.select(None if wait_s == math.inf else wait_s):
            if self.selector.get_map().get(key.fd) is key:  # not closed by an earlier one of this round
                self._survive(key.data)
        while self._timers and self._timers[0][0] <= time.monotonic():
            self._survive(heapq.heappop(self._timers)[2])

    def _survive(self, call: Callable[[], None]) -> None:
        """A system short of memory or file descriptors must not cost every instance its life."""
        try:
            call()
        except OSError as error:
            complain(f"goes on after {error!r}")
            time.sleep(RETRY_S)  # what is ready is still ready
