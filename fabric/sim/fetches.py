"""Fetching images in the simulated world: what `fabric.runtime.fetches` and `fabric.images.fetch` do, without sockets.

Theory of operation. Which chunk is asked of whom is decided by the real `fabric.images.transfer.Transfer`. A chunk is
hashed when it arrives, before it is written, as in `Fetching._take_chunk`; it may have been spoilt on the way
(`Wire.spoilt_on_the_way`), or its holder may be gone, cut off, or found that the chunk is rotten. When no holder is
left the role is asked for others; a holder that lied, or was dropped twice, isn't taken again.

Nodes that fetch into a cache share with their rack (`company`). A mate that has not got a chunk yet is asked again a
moment later, which stands for its waiting.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fabric.effects import FetchProgress, HoldersWanted, ImageFailed, ImageReady, Input
from fabric.images.manifest import Manifest, chunk_hash
from fabric.images.mates import MateTable, bits
from fabric.images.protocol import Holder
from fabric.images.transfer import Transfer
from fabric.messages import HolderRef
from fabric.sim import company
from fabric.sim.clock import Clock
from fabric.sim.company import Company
from fabric.sim.images import Cache, Full, Store

STALL_S = 1.5
DEADLINE_S = 30.0
MAX_STRIKES = 2
MAX_AT_ONCE = 4
MORE_PAUSE_S = 0.2
WAITS_S = 0.05
"""Between two looks of a mate at whether it has got a chunk."""
GONE_S = 0.05
"""Until a link to a process that is not there is seen to be lost."""


class Wire(company.Wire, Protocol):
    """The way from one machine to the store, or the cache, of another."""

    def pieces_at(self, machine: str, endpoint: str) -> Fetches | None: ...

    def store_at(self, machine: str, endpoint: str) -> Store | None:
        """The store that answers there now. None: the link is lost, or nobody answers."""

    def is_cut(self, machine: str, endpoint: str) -> bool:
        """Whether nothing passes: no answer, and no news of a lost link either."""

    def took_s(self) -> float:
        """How long one chunk takes."""

    def spoilt_on_the_way(self, data: bytes) -> bytes:
        """What arrives of a chunk."""


class Target(Protocol):
    """Where an image goes. `shares`: it is a node's, which has mates."""

    shares: bool

    def ready(self, digest: str) -> int | None:
        """Bytes, if it is there already."""

    def begin(self, digest: str, manifest: Manifest) -> dict[bytes, bytes]:
        """The manifest is known: the chunks that need not be fetched. Raises Full."""

    def end(self, digest: str, manifest: Manifest, chunks: dict[bytes, bytes]) -> None:
        """All chunks are there. Raises Full."""

    def whole(self, digest: str) -> bytes | None:
        """An image that is here, to be given to mates; None: it isn't, or is not for mates."""


@dataclass(slots=True)
class IntoCache:
    cache: Cache
    shares: bool = True

    def ready(self, digest: str) -> int | None:
        data = self.cache.get(digest)
        if data is None:
            return None
        self.cache.pin(digest, True)
        return len(data)

    def begin(self, digest: str, manifest: Manifest) -> dict[bytes, bytes]:
        self.cache.make_room()
        return {}

    def end(self, digest: str, manifest: Manifest, chunks: dict[bytes, bytes]) -> None:
        self.cache.admit(digest, b"".join(chunks[one] for one in manifest.chunks))

    def whole(self, digest: str) -> bytes | None:
        entry = self.cache.entries.get(digest)
        return entry.data if entry is not None else None


@dataclass(slots=True)
class IntoStore:
    store: Store
    shares: bool = False
    fetched: dict[bytes, bytes] = field(default_factory=dict)

    def ready(self, digest: str) -> int | None:
        return 0 if self.store.has(digest) else None

    def begin(self, digest: str, manifest: Manifest) -> dict[bytes, bytes]:
        found = {chunk: self.store.read(chunk) for chunk in set(manifest.chunks)}
        here = {chunk: data for chunk, data in sorted(found.items()) if data is not None}
        if self.store.full or (len(set(manifest.chunks)) - len(here)) * manifest.chunk_bytes > self.store.free_bytes:
            raise Full
        return here

    def end(self, digest: str, manifest: Manifest, chunks: dict[bytes, bytes]) -> None:
        self.store.put(digest, manifest, chunks)

    def whole(self, digest: str) -> bytes | None:
        return None


@dataclass(slots=True, eq=False)
class _Fetch:
    digest: str
    machine: str
    began: float
    spare: deque[HolderRef]
    live: dict[str, HolderRef] = field(default_factory=dict)
    strikes: Counter[str] = field(default_factory=Counter)
    dropped: list[str] = field(default_factory=list)
    manifest: Manifest | None = None
    transfer: Transfer | None = None
    company: Company | None = None
    chunks: dict[bytes, bytes] = field(default_factory=dict)
    asking: bool = False
    ended: bool = False
    searched_s: float = 0.0
    asked_at: float = 0.0


class Fetches:
    """Of one agent's process. `emit` takes the news, never from inside a method here; `done(digest)` is called when an
    image has come whole."""

    def __init__(
        self,
        machine: str,
        rack: str,
        clock: Clock,
        rng: random.Random,
        wire: Wire,
        target: Target,
        emit: Callable[[Input], None],
        done: Callable[[str], None],
    ) -> None:
        self._machine = machine
        self._here = Holder(machine, rack, f"tcp://{machine}:7001")
        self.mates = MateTable()
        """Of the chunk server, when it is a holder's."""
        self._manifests: dict[str, Manifest] = {}
        self._clock = clock
        self._rng = rng
        self._wire = wire
        self._target = target
        self._emit = emit
        self._done = done
        self._wanted: dict[str, _Fetch] = {}
        self._closed = False

    def want(self, digest: str, holders: Sequence[HolderRef]) -> None:
        known = self._wanted.get(digest)
        if known is not None:
            if holders:
                self._answer(known, holders)
            return
        fetch = self._wanted[digest] = _Fetch(digest, self._machine, self._clock.now, deque(holders))
        self._clock.after(0.001, lambda: self._begin(fetch))

    def more(self, digest: str, holders: Sequence[HolderRef]) -> None:
        known = self._wanted.get(digest)
        if known is not None:
            self._answer(known, holders)

    def close(self) -> None:
        self._closed = True
        for fetch in self._wanted.values():
            self._over(fetch)

    # --- for mates ---------------------------------------------------------------------------------------------------

    def have(self, digest: str) -> bytes | None:
        manifest = self._manifests.get(digest)
        fetch = self._wanted.get(digest)
        if manifest is None or (fetch is None and self._target.whole(digest) is None):
            return None
        coming = fetch.transfer.coming() if fetch is not None and fetch.transfer is not None else frozenset()
        here = fetch.chunks if fetch is not None else set(manifest.chunks)
        return bits(index in coming or chunk in here for index, chunk in enumerate(manifest.chunks))

    def give(self, digest: str, index: int) -> tuple[bool, bytes | None]:
        """(whether it is here or comes, the bytes that are here)."""
        manifest, fetch = self._manifests.get(digest), self._wanted.get(digest)
        if manifest is None:
            return False, None
        if fetch is not None:
            return True, fetch.chunks.get(manifest.chunks[index])
        whole = self._target.whole(digest)
        at = index * manifest.chunk_bytes
        return whole is not None, whole[at : at + manifest.size_of(index)] if whole is not None else None

    # --- one fetch ---------------------------------------------------------------------------------------------------

    def _begin(self, fetch: _Fetch) -> None:
        if fetch.ended:
            return
        size = self._target.ready(fetch.digest)
        if size is not None:
            self._done(fetch.digest)
            self._end(fetch, ImageReady(fetch.digest, (), (), size, 0, 0, cached=True))
            return
        self._clock.after(DEADLINE_S, lambda: self._fail(fetch, f"was not here after {DEADLINE_S:g} s"))
        self._go_on(fetch)

    def _answer(self, fetch: _Fetch, holders: Sequence[HolderRef]) -> None:
        """The role's answer, or holders that it names unasked."""
        fetch.spare.extend(holders)
        if fetch.asking:
            fetch.asking = False
            fetch.searched_s += self._clock.now - fetch.asked_at
            if not fetch.spare:
                self._clock.after(0.001, lambda: self._fail(fetch, "has no holder left to fetch it from"))
                return
        self._clock.after(0.001, lambda: self._go_on(fetch))

    def _go_on(self, fetch: _Fetch) -> None:
        if fetch.ended or fetch.asking:
            return
        while fetch.spare and len(fetch.live) < MAX_AT_ONCE:
            holder = fetch.spare.popleft()
            if holder.node in fetch.live or fetch.strikes[holder.node] >= MAX_STRIKES:
                continue
            fetch.live[holder.node] = holder
            if fetch.transfer is None:
                self._ask(fetch, holder, None)
            else:
                fetch.transfer.add(self._clock.now, holder.node)
            if fetch.company is not None:
                fetch.company.introduce(holder)
        if not fetch.live and (fetch.transfer is None or fetch.transfer.state == "starved"):
            pause_s = MORE_PAUSE_S if fetch.dropped else 0.0
            fetch.asking = True
            fetch.asked_at = self._clock.now
            excluded = tuple(sorted(node for node, count in fetch.strikes.items() if count >= MAX_STRIKES))
            self._clock.after(pause_s, lambda: self._news(fetch, HoldersWanted(fetch.digest, excluded)))
        elif fetch.transfer is not None and (fetch.company is None or fetch.company.settled):
            mates = fetch.company.linked if fetch.company is not None else {}
            for ask in fetch.transfer.asks(self._clock.now):
                source = fetch.live.get(ask.source) or mates.get(ask.source)
                if source is not None:
                    self._ask(fetch, source, ask.chunk)
            if fetch.company is not None:
                fetch.company.ask_news()

    def _ask(self, fetch: _Fetch, holder: HolderRef, chunk: int | None) -> None:
        """Of its manifest, or of one chunk."""
        self._clock.after(self._wire.took_s(), lambda: self._served(fetch, holder, chunk))
        self._clock.after(STALL_S, lambda: self._stalled(fetch, holder, chunk))

    def _served(self, fetch: _Fetch, holder: HolderRef, chunk: int | None) -> None:
        """The holder answers, if it is there; the answer arrives in the same moment."""
        if fetch.ended or not self._is_asked(fetch, holder):
            return
        if self._wire.is_cut(fetch.machine, holder.endpoint):
            return
        if chunk is not None and holder.node not in fetch.live:
            self._mate_served(fetch, holder, chunk)
            return
        store = self._wire.store_at(fetch.machine, holder.endpoint)
        if store is None:
            self._clock.after(GONE_S, lambda: self._drop(fetch, holder, "the connection is lost"))
            return
        manifest = store.manifest(fetch.digest) if chunk is None else fetch.manifest
        if manifest is None:
            self._drop(fetch, holder, "refused (not_found)")
        elif chunk is None:
            self._take_manifest(fetch, holder, manifest)
        else:
            data = store.read(manifest.chunks[chunk])
            if data is None:
                self._drop(fetch, holder, f"refused (corrupt): chunk {chunk}")
            else:
                if fetch.company is not None:
                    fetch.company.served(holder)
                self._take_chunk(fetch, holder, chunk, self._wire.spoilt_on_the_way(data))

    def _is_asked(self, fetch: _Fetch, source: HolderRef) -> bool:
        mates = fetch.company.linked if fetch.company is not None else {}
        return fetch.live.get(source.node) is source or mates.get(source.node) is source

    def _mate_served(self, fetch: _Fetch, mate: HolderRef, chunk: int) -> None:
        assert fetch.transfer is not None
        pieces = self._wire.pieces_at(fetch.machine, mate.endpoint)
        if pieces is None:
            self._clock.after(GONE_S, lambda: self._drop(fetch, mate, "the connection is lost"))
            return
        comes, data = pieces.give(fetch.digest, chunk)
        if data is not None:
            self._take_chunk(fetch, mate, chunk, self._wire.spoilt_on_the_way(data))
        elif comes:
            fetch.transfer.waits(self._clock.now, mate.node)
            self._clock.after(WAITS_S, lambda: self._served(fetch, mate, chunk))
        else:
            self._drop(fetch, mate, f"refused (not_found): chunk {chunk}")

    def _take_manifest(self, fetch: _Fetch, holder: HolderRef, manifest: Manifest) -> None:
        if fetch.transfer is not None:
            return
        try:
            here = self._target.begin(fetch.digest, manifest)
        except Full:
            self._fail(fetch, "does not fit: the disk is full")
            return
        fetch.manifest = manifest
        fetch.transfer = Transfer(manifest, stall_s=STALL_S)
        for chunk, data in here.items():
            fetch.chunks[chunk] = data
            fetch.transfer.already(manifest.chunks.index(chunk))
        for node in fetch.live:
            fetch.transfer.add(self._clock.now, node)
        if self._target.shares:
            self._manifests[fetch.digest] = manifest
            fetch.company = Company(
                self._clock, self._wire, fetch.digest, self._here, fetch.transfer, lambda: self._go_on(fetch)
            )
            for one in fetch.live.values():
                fetch.company.introduce(one)
        self._news(fetch, FetchProgress(fetch.digest, fetch.transfer.done_bytes, manifest.size))
        self._finish_or_go_on(fetch)

    def _take_chunk(self, fetch: _Fetch, holder: HolderRef, chunk: int, data: bytes) -> None:
        manifest, transfer = fetch.manifest, fetch.transfer
        assert manifest is not None
        assert transfer is not None
        if transfer.arrived(self._clock.now, holder.node, chunk, self.is_sound(manifest, chunk, data)):
            fetch.chunks[manifest.chunks[chunk]] = data
        elif holder.node not in transfer.sources:
            self._drop(fetch, holder, f"chunk {chunk} failed its hash", lied=True)
            return
        self._finish_or_go_on(fetch)

    @staticmethod
    def is_sound(manifest: Manifest, chunk: int, data: bytes) -> bool:
        return len(data) == manifest.size_of(chunk) and chunk_hash(data) == manifest.chunks[chunk]

    def _finish_or_go_on(self, fetch: _Fetch) -> None:
        transfer, manifest = fetch.transfer, fetch.manifest
        if fetch.ended or transfer is None or manifest is None or transfer.state != "complete":
            self._go_on(fetch)
            return
        try:
            self._target.end(fetch.digest, manifest, fetch.chunks)
        except Full:
            self._fail(fetch, "does not fit: the disk is full")
            return
        self._done(fetch.digest)
        by = tuple(sorted((node, size) for node, size in transfer.bytes_by_source.items() if size))
        took_ms = max(0, int((self._clock.now - fetch.began - fetch.searched_s) * 1000))
        ready = ImageReady(fetch.digest, by, tuple(fetch.dropped), manifest.size, took_ms, 1, cached=False)
        self._end(fetch, ready)

    def _stalled(self, fetch: _Fetch, holder: HolderRef, chunk: int | None) -> None:
        if fetch.ended or not self._is_asked(fetch, holder):
            return
        if chunk is None:
            if fetch.transfer is None:
                self._drop(fetch, holder, f"sent no manifest for {STALL_S:g} s")
            return
        assert fetch.transfer is not None
        fetch.transfer.tick(self._clock.now)
        if holder.node not in fetch.transfer.sources:
            self._drop(fetch, holder, f"sent no chunk for {STALL_S:g} s")
        elif holder.node not in fetch.live:  # a mate that waits is heard of; for how long, `tick` says
            self._clock.after(STALL_S, lambda: self._stalled(fetch, holder, chunk))
            self._go_on(fetch)

    def _drop(self, fetch: _Fetch, holder: HolderRef, reason: str, lied: bool = False) -> None:
        if fetch.ended or not self._is_asked(fetch, holder):
            return
        mate = fetch.live.pop(holder.node, None) is None
        if fetch.transfer is not None:
            fetch.transfer.dropped(self._clock.now, holder.node, reason, lied=lied)
        if mate and fetch.company is not None:
            fetch.company.lost(holder.node)
        else:
            fetch.strikes[holder.node] += MAX_STRIKES if lied else 1
        fetch.dropped.append(f"{holder.node}: {reason}")
        self._go_on(fetch)

    # --- ends --------------------------------------------------------------------------------------------------------

    def _fail(self, fetch: _Fetch, what: str) -> None:
        told = "; ".join(fetch.dropped[-4:]) or "no holder was given"
        self._end(fetch, ImageFailed(fetch.digest, "node", f"image {fetch.digest} {what} ({told})"))

    def _end(self, fetch: _Fetch, end: Input) -> None:
        if fetch.ended:
            return
        self._over(fetch)
        del self._wanted[fetch.digest]
        self._emit(end)

    @staticmethod
    def _over(fetch: _Fetch) -> None:
        fetch.ended = True
        if fetch.company is not None:
            fetch.company.over = True

    def _news(self, fetch: _Fetch, news: Input) -> None:
        if not fetch.ended:
            self._emit(news)
