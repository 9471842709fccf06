"""Virtual time: a heap of (when, sequence, action). What is due at one moment happens in the order it was asked for.

Nothing is ever taken back: whoever asked for something that is out of date by then notices it in the action.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable

Action = Callable[[], None]


class Clock:
    """`now`: seconds since the simulation began."""

    __slots__ = ("_heap", "_serial", "events", "now")

    def __init__(self) -> None:
        self.now = 0.0
        self.events = 0
        """Actions run so far."""
        self._heap: list[tuple[float, int, Action]] = []
        self._serial = 0

    def at(self, when: float, action: Action) -> None:
        """At `when`, or at once if that is past."""
        self._serial += 1
        heapq.heappush(self._heap, (when if when > self.now else self.now, self._serial, action))

    def after(self, delay_s: float, action: Action) -> None:
        self._serial += 1
        heapq.heappush(self._heap, (self.now + delay_s, self._serial, action))

    @property
    def waiting(self) -> int:
        return len(self._heap)

    @property
    def due(self) -> float:
        """When the next action is."""
        return self._heap[0][0] if self._heap else math.inf

    def run(self, until: float) -> None:
        """Let time pass until then; everything due by then has happened when this returns."""
        heap, pop = self._heap, heapq.heappop
        while heap and heap[0][0] <= until:
            self.now, _, action = pop(heap)
            self.events += 1
            action()
        self.now = max(self.now, until)
