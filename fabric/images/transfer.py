"""Which chunk to ask of whom next: the heart of a fetch, without sockets, files or a clock.

The driver (`fabric.images.fetch`) does this in a loop, with `now` in seconds of any clock that only goes forward:

    for ask in transfer.asks(now):         # at most `window` a holder, and `MATES_WINDOW` of all mates, are unanswered
        send the request for ask.chunk to ask.source
    wait for an answer, at most until transfer.wake_at(now)
    transfer.arrived(now, source, chunk, sound)        # the caller has hashed the bytes; True: write them
    transfer.sends(now, source)                        # part of a chunk has come
    transfer.dropped(now, source, reason)              # refused, connection lost, ...
    transfer.tick(now)                                 # drops who stalls

until `state` is "complete", or "starved": chunks are missing and no holder is left, so the caller looks for more and
`add`s them. (SmartCloud flow, step 7: "selects at least two of them"; DESIGN: step 9.)

The rules:

- Chunks are given out in order, to whichever holder has room in its window, so a fast holder gives more than a slow
  one.
- With nothing left to give out, a holder that idles is asked also for the chunk that another has owed for longest, if
  that is longer than `steal_after_s`. So a slow, silent or dead holder doesn't hold up the end, and two even ones
  don't do the work twice. A chunk is owed by at most two at a time.
- Who sends bytes with another hash lies or is rotten: it is dropped at once. A holder that owes chunks and of which
  nothing came for `stall_s` is dropped too: over a narrow link, a chunk may take longer than that. What somebody
  dropped owed is given out again, first.
- Each chunk is taken once; a second copy is counted as wasted and not written.

Mates (`fabric.images.mates`) have rules of their own, so that holders give about one copy a rack:

- What a mate is known to have is asked of it, the mate with the least to do first; what nobody is known to have, of
  the stripe's parent (`lead`); what is left, of the holders.
- A mate may be waiting for a chunk itself, and says so (`waits`). One of which nothing is heard for `MATE_STALL_S`
  while it owes is dropped; all that owe are, when nothing came from anybody for `stall_s`, whatever they say.
- With mates, a holder is asked less at a time: what is asked of it early, a mate might have had soon (a tenth more
  leaves the holders otherwise, and nobody is done sooner).
- What a mate, or a holder, has owed for longer than `MATE_PATIENCE_S` may be asked of an idle holder: with mates,
  holders idle often, and are not to give twice what is only slow.
- A mate that has given all that was known of it is worth asking what it has now (`news_of`).

A chunk that repeats inside the image is asked once: a "chunk" here is one distinct hash, by the index of its first
place.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from fabric.images.manifest import Manifest
from fabric.images.mates import STRIPES

WINDOW = 4
"""Chunks asked of one holder and not yet answered. Two holders with 4 each keep 8 in flight (bench/RESULTS.md)."""
STALL_S = 5.0
STEAL_AFTER_S = 0.1
MAX_OWING = 2
"""Who may owe one chunk at a time."""
MATES_WINDOW = 8
"""Chunks asked of mates together, evenly; at least one of each. More would only take memory."""
MATE_STALL_S = 3.0
MATE_PATIENCE_S = 2.0
NEWS_EVERY_S = 0.5
"""A mate is asked what it has at most so often."""

State = Literal["running", "starved", "complete"]


class Ask(NamedTuple):
    source: str
    chunk: int


@dataclass(frozen=True, slots=True)
class Dropped:
    """Somebody who is asked no more, and why. `lied`: it sent bytes that fail their hash."""

    node: str
    reason: str
    lied: bool = False


@dataclass(slots=True)
class _Source:
    """`heard`: when it last sent something, or was asked while it owed nothing. `owes`: chunk -> when it was
    asked, oldest first."""

    heard: float
    owes: dict[int, float] = field(default_factory=dict)


@dataclass(slots=True)
class _Mate(_Source):
    """`has`: one bit a chunk. `queue`: what is to be asked of it. `told`: when `has` was news."""

    has: bytes = b""
    queue: deque[int] = field(default_factory=deque)
    told: float = 0.0


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
        self.bytes_by_source: dict[str, int] = {}
        self.drops: list[Dropped] = []
        self.fetched_chunks = 0
        self.wasted_bytes = 0
        self.done_bytes = 0
        self._window, self._stall_s, self._steal_after_s = window, stall_s, steal_after_s
        self._taken = bytearray(len(manifest.chunks))
        self._owing = bytearray(len(manifest.chunks))
        """By how many each chunk is owed; `_owed` is the sum."""
        self._owed = 0
        self._repeats: dict[int, list[int]] = {}
        first: dict[bytes, int] = {}
        for index, chunk in enumerate(manifest.chunks):
            if (before := first.setdefault(chunk, index)) != index:
                self._repeats.setdefault(before, []).append(index)
                self._taken[index] = True
        self._missing = len(first)
        self._holders: dict[str, _Source] = {}
        self._mates: dict[str, _Mate] = {}
        self._parents: Sequence[str | None] = (None,) * STRIPES
        self._queue: deque[int] = deque()  # what is to be asked of holders
        self._planned = False  # the queues are those of what is known now
        self._moved = 0.0  # when something last came, or was asked while nothing was owed

    @property
    def complete(self) -> bool:
        return not self._missing

    @property
    def state(self) -> State:
        if not self._missing:
            return "complete"
        if not self._planned:
            self._plan()
        useful = self._holders or any(mate.owes or self._next(mate.queue) for mate in self._mates.values())
        return "running" if useful else "starved"

    @property
    def sources(self) -> tuple[str, ...]:
        """Holders and mates that are not dropped."""
        return (*self._holders, *self._mates)

    def coming(self) -> frozenset[int]:
        """The chunks that holders owe."""
        return frozenset(chunk for holder in self._holders.values() for chunk in holder.owes)

    def add(self, now: float, holder: str) -> None:
        """One more holder to ask. One that was dropped may be added again."""
        self._holders.setdefault(holder, _Source(now))
        self.bytes_by_source.setdefault(holder, 0)

    def add_mate(self, now: float, mate: str, has: bytes = b"") -> None:
        """One more mate to ask, or news of what one has: one bit a chunk."""
        known = self._mates.setdefault(mate, _Mate(now))
        known.has, known.told = has, now
        self.bytes_by_source.setdefault(mate, 0)
        self._planned = False

    def lead(self, parents: Sequence[str | None]) -> None:
        """Whom to ask for the chunks of each stripe that nobody is known to have; None, or who is no mate: holders."""
        if list(parents) != list(self._parents):
            self._parents = parents
            self._planned = False

    def leave(self, mate: str) -> bool:
        """Does without a mate. False: it owes something, and stays."""
        known = self._mates.get(mate)
        if known is not None and known.owes:
            return False
        self._mates.pop(mate, None)
        self._planned = False
        return True

    def waits(self, now: float, mate: str) -> None:
        """It is there, and has not got yet what it owes."""
        known = self._mates.get(mate)
        if known is not None:
            known.heard = now

    def news_of(self, now: float) -> list[str]:
        """The mates to be asked what they have: they have given all that was known. They count as asked."""
        idle = [
            name
            for name, mate in self._mates.items()
            if not mate.owes and not mate.queue and now - mate.told >= NEWS_EVERY_S
        ]
        for name in idle:
            self._mates[name].told = now
        return idle

    def already(self, chunk: int) -> None:
        """The caller has this chunk from elsewhere: nobody is asked for it."""
        if not self._taken[chunk]:
            self._take(chunk)

    def owes(self, source: str, chunk: int) -> bool:
        """Whether this chunk was asked of it, and has not come."""
        asked = self._source(source)
        return asked is not None and chunk in asked.owes

    def places(self, chunk: int) -> list[int]:
        """Every index at which the image has this chunk."""
        return [chunk, *self._repeats.get(chunk, ())]

    def asks(self, now: float) -> list[Ask]:
        """The requests to send now. They count as sent."""
        if not self._planned:
            self._plan()
        asks: list[Ask] = []
        room = max(1, MATES_WINDOW // max(1, len(self._mates)))
        for name, mate in self._mates.items():
            while len(mate.owes) < room and self._next(mate.queue):
                asks.append(self._ask(now, name, mate, mate.queue.popleft()))
        window = max(1, self._window // (1 + len(self._mates)))
        while self._next(self._queue):
            free = [name for name, holder in self._holders.items() if len(holder.owes) < window]
            if not free:
                return asks
            name = min(free, key=lambda n: len(self._holders[n].owes))
            asks.append(self._ask(now, name, self._holders[name], self._queue.popleft()))
        for name, holder in self._holders.items():
            if holder.owes:
                continue
            if (chunk := self._owed_for_longest(now)) is None:
                break
            asks.append(self._ask(now, name, holder, chunk))
        return asks

    def arrived(self, now: float, source: str, chunk: int, sound: bool) -> bool:
        """Bytes came for a chunk; `sound`: they have its hash. True if they are to be written, which happens once a
        chunk.
        """
        sender = self._source(source)
        if sender is None or chunk not in sender.owes:
            return False
        if not sound:
            self.dropped(now, source, f"chunk {chunk} failed its hash", lied=True)
            return False
        del sender.owes[chunk]
        self._owing[chunk] -= 1
        self._owed -= 1
        sender.heard = self._moved = now
        size = self.manifest.size_of(chunk)
        if self._taken[chunk]:
            self.wasted_bytes += size
            return False
        self.bytes_by_source[source] += size
        self.fetched_chunks += 1
        self._take(chunk)
        return True

    def sends(self, now: float, source: str) -> None:
        """Part of something has come from it."""
        sender = self._source(source)
        if sender is not None and sender.owes:
            sender.heard = self._moved = now

    def dropped(self, now: float, source: str, reason: str, *, lied: bool = False) -> None:
        """Asks somebody no more; what only it owed is given out again. Nothing happens if it was dropped before."""
        gone = self._holders.pop(source, None) or self._mates.pop(source, None)
        if gone is None:
            return
        self.drops.append(Dropped(source, reason, lied))
        self._owed -= len(gone.owes)
        for chunk in gone.owes:
            self._owing[chunk] -= 1
        self._planned = False

    def tick(self, now: float) -> None:
        """Drops who stalls."""
        for name, holder in list(self._holders.items()):
            if holder.owes and now - holder.heard >= self._stall_s:
                self.dropped(now, name, f"sent nothing for {self._stall_s:g} s while it owed {len(holder.owes)}")
        stuck = now - self._moved >= self._stall_s
        for name, mate in list(self._mates.items()):
            if mate.owes and now - mate.heard >= MATE_STALL_S:
                self.dropped(now, name, f"said nothing for {MATE_STALL_S:g} s while it owed {len(mate.owes)}")
            elif mate.owes and stuck:
                self.dropped(now, name, f"owed {len(mate.owes)} when nothing had come for {self._stall_s:g} s")

    def wake_at(self, now: float) -> float:
        """When to look again if nothing arrives."""
        times = [holder.heard + self._stall_s for holder in self._holders.values() if holder.owes]
        times += [min(m.heard + MATE_STALL_S, self._moved + self._stall_s) for m in self._mates.values() if m.owes]
        if not self._next(self._queue) and len(self._holders) + len(self._mates) > 1:
            times += [
                asked + patience_s
                for source, patience_s in self._owers()
                for asked in source.owes.values()
                if now < asked + patience_s
            ]
        return min(times, default=now + self._stall_s)

    def _source(self, name: str) -> _Source | None:
        return self._holders.get(name) or self._mates.get(name)

    def _owers(self) -> list[tuple[_Source, float]]:
        """Who owes something, each with the time after which that may be asked of another."""
        patience_s = MATE_PATIENCE_S if self._mates else self._steal_after_s
        holders: list[tuple[_Source, float]] = [(one, patience_s) for one in self._holders.values() if one.owes]
        return holders + [(one, MATE_PATIENCE_S) for one in self._mates.values() if one.owes]

    def _plan(self) -> None:
        """What is to be asked of whom, by what is known now; in order."""
        self._planned = True
        self._queue = deque()
        for mate in self._mates.values():
            mate.queue = deque()
        mates = [(mate.has, len(mate.has), mate.queue) for mate in self._mates.values()]
        parents = [self._mates.get(name or "") for name in self._parents]
        for chunk, taken in enumerate(self._taken):
            if taken or self._owing[chunk]:
                continue
            queue: deque[int] | None = None
            at, bit = chunk >> 3, 1 << (chunk & 7)
            for has, size, theirs in mates:
                if at < size and has[at] & bit and (queue is None or len(theirs) < len(queue)):
                    queue = theirs
            parent = parents[chunk % STRIPES]
            if queue is None:
                queue = parent.queue if parent is not None else self._queue
            queue.append(chunk)

    def _ask(self, now: float, name: str, source: _Source, chunk: int) -> Ask:
        if not source.owes:
            source.heard = now
        if not self._owed:
            self._moved = now
        source.owes[chunk] = now
        self._owing[chunk] += 1
        self._owed += 1
        return Ask(name, chunk)

    def _next(self, queue: deque[int]) -> bool:
        """Whether a chunk is to be asked; then it is the first of the queue."""
        while queue and (self._taken[queue[0]] or self._owing[queue[0]]):
            queue.popleft()
        return bool(queue)

    def _take(self, chunk: int) -> None:
        self._taken[chunk] = True
        self._missing -= 1
        self.done_bytes += sum(self.manifest.size_of(index) for index in self.places(chunk))

    def _owed_for_longest(self, now: float) -> int | None:
        """A missing chunk that somebody has owed for longer than it may, the oldest first."""
        late: list[tuple[float, int]] = []
        for source, patience_s in self._owers():
            for chunk, asked in source.owes.items():  # oldest first
                if now - asked < patience_s:
                    break
                if not self._taken[chunk] and self._owing[chunk] < MAX_OWING:
                    late.append((asked, chunk))
        return min(late)[1] if late else None
