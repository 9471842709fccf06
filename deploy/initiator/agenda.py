"""Deadlines by name: set, moved and forgotten at the cost of a heap, since an initiator may have 10,000 children."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

Key = tuple[str, str]
"""(what, about whom)."""


class Agenda:
    def __init__(self) -> None:
        self._when: dict[Key, float] = {}
        self._heap: list[tuple[float, Key]] = []

    def set(self, key: Key, when: float) -> None:
        """At `when`, and not at any time set before."""
        if self._when.get(key) != when:
            self._when[key] = when
            heapq.heappush(self._heap, (when, key))

    def by(self, key: Key, when: float) -> None:
        """At `when` at the latest."""
        if when < self._when.get(key, float("inf")):
            self.set(key, when)

    def drop(self, key: Key) -> None:
        self._when.pop(key, None)

    def __contains__(self, key: Key) -> bool:
        return key in self._when

    def due(self, now: float) -> Iterator[Key]:
        """Each that is due, once; it is forgotten when it is handed out. What is set meanwhile waits for the next
        call."""
        found = []
        while self._heap and self._heap[0][0] <= now:
            found.append(heapq.heappop(self._heap))
        for when, key in found:
            if self._when.get(key) == when:
                del self._when[key]
                yield key

    @property
    def next(self) -> float | None:
        while self._heap and self._when.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None
