"""Which chunk to ask of which holder next: the heart of a fetch, without sockets, files or a clock.

The driver (`fabric.images.fetch`) does this in a loop, with `now` in seconds of any clock that only goes forward:

    for ask in transfer.asks(now):         # at most `window` a holder are unanswered
        send the request for ask.chunk to ask.holder
    wait for an answer, at most until transfer.wake_at(now)
    transfer.arrived(now, holder, chunk, sound)        # the caller has hashed the bytes; True: write them
    transfer.dropped(now, holder, reason)              # refused, connection lost, ...
    transfer.tick(now)                                 # drops who stalls

until `state` is "complete", or "starved": chunks are missing and no holder is left, so the caller looks for more and
`add`s them. (SmartCloud flow, step 7: "selects at least two of them"; DESIGN: step 9.)

The rules:

- Chunks are given out in order, to whoever has room in its window, so a fast holder gives more than a slow one.
- With nothing left to give out, a holder that idles is asked also for the chunk that another has owed for longest, if
  that is longer than `steal_after_s`. So a slow, silent or dead holder doesn't hold up the end, and two even ones
  don't do the work twice. A chunk is owed by at most two holders at a time.
- A holder that sends bytes with another hash lies or is rotten: it is dropped at once. One that owes chunks and has
  sent
  none for `stall_s` is dropped too. What a dropped holder owed is given out again, first.
- Each chunk is taken once; a second copy is counted as wasted and not written.

A chunk that repeats inside the image is asked once: a "chunk" here is one distinct hash, by the index of its first
place.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from fabric.images.manifest import Manifest

WINDOW = 4
"""Chunks asked of one holder and not yet answered. Two holders with 4 each keep 8 in flight (bench/RESULTS.md)."""
STALL_S = 5.0
STEAL_AFTER_S = 0.1
MAX_OWING = 2
"""Holders that may owe one chunk at a time."""

State = Literal["running", "starved", "complete"]


@dataclass(frozen=True, slots=True)
class Ask:
    holder: str
    chunk: int


@dataclass(frozen=True, slots=True)
class Dropped:
    """A holder that is asked no more, and why. `lied`: it sent bytes that fail their hash."""

    node: str
    reason: str
    lied: bool = False


@dataclass(slots=True)
class _Holder:
    heard: float  # when it last sent a chunk, or was asked while it owed nothing
    owes: dict[int, float] = field(default_factory=dict)  # chunk -> when it was asked, oldest first


class Transfer:
    def __init__(
        self,
        manifest: Manifest,
        *,
        window: int = WINDOW,
        stall_s: float = STALL_S,
        steal_after_s: float = STEAL_AFTER_S,
    ) -> None:
        self.manifest = manifest
        self.bytes_by_holder: dict[str, int] = {}
        self.drops: list[Dropped] = []
        self.fetched_chunks = 0
        self.wasted_bytes = 0
        self.done_bytes = 0
        self._window, self._stall_s, self._steal_after_s = window, stall_s, steal_after_s
        self._taken = bytearray(len(manifest.chunks))
        self._repeats: dict[int, list[int]] = {}
        first: dict[bytes, int] = {}
        for index, chunk in enumerate(manifest.chunks):
            if (before := first.setdefault(chunk, index)) != index:
                self._repeats.setdefault(before, []).append(index)
                self._taken[index] = True
        self._missing = len(first)
        self._fresh = 0  # from here on nothing was asked yet
        self._again: deque[int] = deque()  # to be given out before those
        self._holders: dict[str, _Holder] = {}

    @property
    def state(self) -> State:
        if not self._missing:
            return "complete"
        return "running" if self._holders else "starved"

    @property
    def holders(self) -> tuple[str, ...]:
        """Those that are not dropped."""
        return tuple(self._holders)

    def add(self, now: float, holder: str) -> None:
        """One more holder to ask. One that was dropped may be added again."""
        self._holders.setdefault(holder, _Holder(now))
        self.bytes_by_holder.setdefault(holder, 0)

    def already(self, chunk: int) -> None:
        """The caller has this chunk from elsewhere: nobody is asked for it."""
        if not self._taken[chunk]:
            self._take(chunk)

    def places(self, chunk: int) -> list[int]:
        """Every index at which the image has this chunk."""
        return [chunk, *self._repeats.get(chunk, ())]

    def asks(self, now: float) -> list[Ask]:
        """The requests to send now. They count as sent."""
        asks: list[Ask] = []
        while self._more():
            free = [name for name, holder in self._holders.items() if len(holder.owes) < self._window]
            if not free:
                return asks
            name = min(free, key=lambda n: len(self._holders[n].owes))
            asks.append(self._ask(now, name, self._again.popleft()))
        for name, holder in self._holders.items():
            if not holder.owes and (chunk := self._owed_for_longest(now)) is not None:
                asks.append(self._ask(now, name, chunk))
        return asks

    def arrived(self, now: float, holder: str, chunk: int, sound: bool) -> bool:
        """Bytes came for a chunk; `sound`: they have its hash. True if they are to be written, which happens once a
        chunk.
        """
        sender = self._holders.get(holder)
        if sender is None or chunk not in sender.owes:
            return False
        if not sound:
            self.dropped(now, holder, f"chunk {chunk} failed its hash", lied=True)
            return False
        del sender.owes[chunk]
        sender.heard = now
        size = self.manifest.size_of(chunk)
        if self._taken[chunk]:
            self.wasted_bytes += size
            return False
        self.bytes_by_holder[holder] += size
        self.fetched_chunks += 1
        self._take(chunk)
        return True

    def dropped(self, now: float, holder: str, reason: str, *, lied: bool = False) -> None:
        """Asks this holder no more; what only it owed is given out again. Nothing happens if it was dropped before."""
        gone = self._holders.pop(holder, None)
        if gone is None:
            return
        self.drops.append(Dropped(holder, reason, lied))
        for chunk in reversed(gone.owes):
            if not self._taken[chunk] and not any(chunk in other.owes for other in self._holders.values()):
                self._again.appendleft(chunk)

    def tick(self, now: float) -> None:
        """Drops the holders that stall."""
        for name, holder in list(self._holders.items()):
            if holder.owes and now - holder.heard >= self._stall_s:
                self.dropped(now, name, f"sent no chunk for {self._stall_s:g} s while it owed {len(holder.owes)}")

    def wake_at(self, now: float) -> float:
        """When to look again if nothing arrives."""
        times = [holder.heard + self._stall_s for holder in self._holders.values() if holder.owes]
        if not self._more() and len(self._holders) > 1:
            times += [
                asked + self._steal_after_s
                for holder in self._holders.values()
                for asked in holder.owes.values()
                if now < asked + self._steal_after_s
            ]
        return min(times, default=now + self._stall_s)

    def _ask(self, now: float, name: str, chunk: int) -> Ask:
        holder = self._holders[name]
        if not holder.owes:
            holder.heard = now
        holder.owes[chunk] = now
        return Ask(name, chunk)

    def _more(self) -> bool:
        """Whether a chunk is to be given out: then the next one is the first of `_again`."""
        while self._again and self._taken[self._again[0]]:
            self._again.popleft()
        while not self._again and self._fresh < len(self._taken):
            if not self._taken[self._fresh]:
                self._again.append(self._fresh)
            self._fresh += 1
        return bool(self._again)

    def _take(self, chunk: int) -> None:
        self._taken[chunk] = True
        self._missing -= 1
        self.done_bytes += sum(self.manifest.size_of(index) for index in self.places(chunk))

    def _owed_for_longest(self, now: float) -> int | None:
        """A missing chunk that one holder has owed for longer than `steal_after_s`, the oldest first."""
        owing: dict[int, list[float]] = {}
        for holder in self._holders.values():
            for chunk, asked in holder.owes.items():
                if not self._taken[chunk]:
                    owing.setdefault(chunk, []).append(asked)
        late = [
            (min(asked), chunk)
            for chunk, asked in owing.items()
            if len(asked) < MAX_OWING and now - min(asked) >= self._steal_after_s
        ]
        return min(late)[1] if late else None
