"""Fetching an image from several holders at once (SmartCloud flow, step 7; DESIGN: step 9).

`fetch` is for a worker thread: it blocks, has its own sockets, and ends when the image is there, when it can't be
had, when the time is over or when `cancelled` is set. First the manifest is asked of all holders and the first one
that has the digest is taken; then `fabric.images.transfer` says which chunk to ask of whom. A chunk is hashed before
it is written, so the file never has a byte that fails its hash. The file is written beside its final name and renamed
at the end; a failure leaves nothing. Large files of an archive may go to files of their own instead, as they come
(`fabric.images.placing`).

Nodes of a rack that fetch the same image pass chunks on to each other, if they are given `Neighbours`: who has which is
the affair of `fabric.images.company`, and what a mate sends is trusted no more than what a holder sends.

Memory: `WINDOW` chunks a holder, and `MATES_WINDOW` of all mates, are asked for and not yet here: 2 holders, 4 chunks
of 1 MiB each, and 8 chunks of mates. They are with the kernel, as far as it holds them; here a connection has at most
one buffer, and mostly one does for all (`fabric.images.wire`). A holder that dies, stalls or lies is dropped and the
others go on. When none is left, `more` is asked for other holders; a node that lied, or was dropped twice, isn't taken
again.

`Fetching` is the same with another place to write to: `fabric.images.replicate` writes into a chunk store.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol
from uuid import uuid4

from fabric.images.archive import remove_tree
from fabric.images.company import HAVE_ID, MATES_ID, Company
from fabric.images.errors import EndpointError, FetchCancelled, FetchFailed, ManifestError, StoreFull
from fabric.images.hollow import Placed
from fabric.images.links import Arrived, Links, Lost
from fabric.images.manifest import MAX_CHUNKS, Manifest, chunk_hash, digest_hex, digest_of
from fabric.images.mates import MIN_SHARED_BYTES
from fabric.images.pieces import Pieces
from fabric.images.placing import Placer
from fabric.images.protocol import (
    Data,
    GetChunk,
    GetManifest,
    Have,
    Holder,
    Mates,
    ProtocolError,
    Refused,
    Underway,
    decode_mates,
)
from fabric.images.tarwalk import Limits
from fabric.images.transfer import MATE_STALL_S, STALL_S, WINDOW, Dropped, Transfer

DEADLINE_S = 600.0
MAX_STRIKES = 2
"""A node that was dropped so often is not taken again; one that lied, not once more."""
MAX_AT_ONCE = 4
"""Holders asked at a time, which bounds the memory; the others are kept for when one of these is dropped."""
MORE_PAUSE_S = 0.2
"""Between two questions for more holders, so that a node that comes back has a moment to do so."""
_MANIFEST_ID = MAX_CHUNKS
"""The id of a request for the manifest: past those of all chunks."""
_COUNT_EVERY_S = 0.5
"""How often it is looked who is sending, though no answer is here whole."""
_LOOK_S = 0.1
"""How often it is looked whether somebody stalls, and, while nothing arrives, at `cancelled`."""

log = logging.getLogger(__name__)

More = Callable[[frozenset[str]], list[Holder]]
Progress = Callable[[int, int], None]


def no_more(excluded: frozenset[str]) -> list[Holder]:
    """For `more`: there are no other holders."""
    return []


@dataclass(frozen=True, slots=True)
class Neighbours:
    """What a fetch needs to share with its rack. `here`: this node and its own chunk server, which serves `pieces`;
    asked for when there is something to share. Raises `EndpointError`: then there is no sharing."""

    here: Callable[[], Holder]
    pieces: Pieces


@dataclass(frozen=True, slots=True)
class FetchReport:
    """`bytes_by_holder`: node (also a mate) -> bytes taken from it; `chunks`: distinct chunks fetched; `wasted_bytes`:
    came twice. `placed`: what is not in the file, if that was asked for."""

    manifest: Manifest
    bytes_by_holder: dict[str, int]
    seconds: float
    dropped: list[Dropped]
    chunks: int
    wasted_bytes: int
    placed: Placed | None = None


class Sink(Protocol):
    """Where the chunks of a fetch go."""

    def start(self, manifest: Manifest) -> set[int]:
        """The manifest is known. Answers with the indices whose chunks are here already."""

    def write(self, manifest: Manifest, places: list[int], data: memoryview) -> None:
        """The verified bytes of a chunk, and every index at which the image has it; called once a chunk."""


def fetch(
    digest: str,
    holders: Sequence[Holder],
    into: Path,
    *,
    more: More = no_more,
    cancelled: threading.Event | None = None,
    deadline_s: float = DEADLINE_S,
    stall_s: float = STALL_S,
    window: int = WINDOW,
    progress: Progress | None = None,
    neighbours: Neighbours | None = None,
    place: Limits | None = None,
) -> FetchReport:
    """Writes the image `digest` to the file `into`, which appears whole or not at all.

    With `place`, large bodies of a plain archive within these limits are not in it, but beside it, where the report
    says.

    `more(excluded)` is asked for other holders when none is left; `progress(done, total)` is told bytes, from this
    thread. With `neighbours`, who takes the file from here says so to `neighbours.pieces`. Raises `FetchFailed` with a
    reason for each holder, `FetchCancelled`, `StoreFull` if the disk is full, `BadDigest`.
    """
    partial = into.with_name(f".{into.name}.{uuid4().hex}.partial")
    bodies = partial.with_suffix(".bodies")
    fd = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    whole = False
    pieces = neighbours.pieces if neighbours is not None else None
    sink = _FileSink(fd, bodies if place is not None else None, place or Limits(), digest, pieces)
    try:
        fetching = Fetching(digest, sink, more, window, stall_s, progress, neighbours)
        report = fetching.run(holders, cancelled or threading.Event(), deadline_s)
        os.rename(partial, into)
        whole = True
        return replace(report, placed=sink.placer.placed() if sink.placer is not None else None)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFull(f"{into}: the disk refused a write ({error.strerror}): make room") from error
        raise
    finally:
        sink.close()
        os.close(fd)
        if neighbours is not None and not whole:
            neighbours.pieces.end(digest)
        with suppress(FileNotFoundError):
            partial.unlink()
        if not whole:
            remove_tree(bodies)


class _FileSink:
    def __init__(self, fd: int, bodies: Path | None, limits: Limits, digest: str, pieces: Pieces | None) -> None:
        self.fd, self.bodies, self.limits, self.digest, self.pieces = fd, bodies, limits, digest, pieces
        self.placer: Placer | None = None

    def close(self) -> None:
        if self.placer is not None:
            self.placer.close()

    def start(self, manifest: Manifest) -> set[int]:
        self.placer = Placer(self.fd, self.bodies, manifest.size, manifest.chunk_bytes, self.limits)
        if self.pieces is not None:
            self.pieces.begin(self.digest, manifest, self.placer.reader())
        return set()

    def write(self, manifest: Manifest, places: list[int], data: memoryview) -> None:
        assert self.placer is not None, "started"
        for index in places:
            self.placer.write(index, data)
        if self.pieces is not None:
            self.pieces.arrived(self.digest, places[0])


class Fetching:
    """One fetch, for one thread. A request for a chunk carries its index for an id."""

    def __init__(
        self,
        digest: str,
        sink: Sink,
        more: More,
        window: int,
        stall_s: float,
        progress: Progress | None,
        neighbours: Neighbours | None = None,
    ) -> None:
        digest_hex(digest)
        self._digest, self._sink, self._more = digest, sink, more
        self._window, self._stall_s, self._progress = window, stall_s, progress
        self._neighbours = neighbours
        self._links = Links()
        self._transfer: Transfer | None = None
        self._company: Company | None = None
        self._live: dict[str, float] = {}  # node -> since when it is asked
        self._spare: deque[Holder] = deque()
        self._dropped: list[Dropped] = []
        self._strikes: Counter[str] = Counter()
        self._look_at = 0.0
        self._count_at = 0.0

    def run(self, holders: Sequence[Holder], cancelled: threading.Event, deadline_s: float) -> FetchReport:
        begun = time.monotonic()
        deadline = begun + deadline_s
        with self._links:
            self._add(holders)
            while self._transfer is None or not self._transfer.complete:
                now = time.monotonic()
                if cancelled.is_set():
                    raise FetchCancelled(f"image {self._digest}: cancelled")
                if now >= deadline:
                    raise self._failed(f"was not here after {deadline_s:g} s")
                self._add(())
                if not self._live and (self._transfer is None or self._transfer.state == "starved"):
                    self._starved(cancelled, deadline - now)
                self._turn(min(deadline, now + _LOOK_S))
        transfer = self._transfer
        return FetchReport(
            transfer.manifest,
            {node: taken for node, taken in transfer.bytes_by_source.items() if taken},
            time.monotonic() - begun,
            self._dropped,
            transfer.fetched_chunks,
            transfer.wasted_bytes,
        )

    def _add(self, holders: Sequence[Holder]) -> None:
        """Opens links to those that may be asked, at most `MAX_AT_ONCE` in all."""
        now = time.monotonic()
        self._spare += holders
        while self._spare and len(self._live) < MAX_AT_ONCE:
            holder = self._spare.popleft()
            if holder.node in self._live or self._strikes[holder.node] >= MAX_STRIKES:
                continue
            if self._company is not None and holder.node in self._company:
                self._drop(holder.node, "has the name of a holder")
            self._links.open(holder)
            self._live[holder.node] = now
            if self._transfer is None:
                self._links.send(holder.node, GetManifest(id=_MANIFEST_ID, digest=self._digest))
            else:
                self._transfer.add(now, holder.node)
            if self._company is not None:
                self._company.introduce(holder.node)

    def _starved(self, cancelled: threading.Event, left_s: float) -> None:
        if self._dropped:
            cancelled.wait(min(MORE_PAUSE_S, left_s))
        if cancelled.is_set():
            return
        self._add(self._more(frozenset(node for node, strikes in self._strikes.items() if strikes >= MAX_STRIKES)))
        if not self._live:
            raise self._failed("has no holder left to fetch it from")

    def _turn(self, until: float) -> None:
        """Sends what is due, waits for answers at most until `until`, and takes them."""
        now = time.monotonic()
        if self._transfer is not None:
            self._ask(now, self._transfer)
        if self._hear(0.0) and now < self._look_at:
            return
        self._look_at = now + _LOOK_S
        self._drop_stalled(now)
        if self._transfer is not None:
            until = min(until, self._wake_at(now, self._transfer))
        self._hear(until - now)

    def _hear(self, wait_s: float) -> bool:
        """Takes what comes within so many seconds. False: nothing did."""
        heard = False
        for event in self._links.poll(wait_s):
            heard = True
            if event.node not in self._live and (self._company is None or event.node not in self._company):
                continue  # dropped by an earlier event
            if isinstance(event, Lost):
                self._drop(event.node, event.reason)
            else:
                self._take(event)
        return heard

    def _wake_at(self, now: float, transfer: Transfer) -> float:
        """When to look again if nothing is heard."""
        if self._company is None:
            return transfer.wake_at(now)
        if not self._company.settled(now):
            return self._company.wake_at(now)
        return min(transfer.wake_at(now), self._company.wake_at(now))

    def _ask(self, now: float, transfer: Transfer) -> None:
        """Sends what is due."""
        company = self._company
        if company is not None:
            for silent in company.turn(now, self._live):
                self._drop(silent, f"did not say what it has for {MATE_STALL_S:g} s")
            if not company.settled(now):
                return
        of_holders = False
        for ask in transfer.asks(now):
            self._links.send(ask.source, GetChunk(id=ask.chunk, hash=transfer.manifest.chunks[ask.chunk]))
            of_holders = of_holders or ask.source in self._live
        if of_holders and company is not None and self._neighbours is not None:
            self._neighbours.pieces.coming(self._digest, transfer.coming())

    def _take(self, event: Arrived) -> None:
        answer, transfer, company = event.answer, self._transfer, self._company
        if isinstance(answer, Refused):
            self._drop(event.node, f"refused ({answer.code}): {answer.reason}")
        elif isinstance(answer, Data):
            if transfer is None:
                self._take_manifest(event)
            elif answer.id != _MANIFEST_ID:
                self._take_chunk(transfer, event)
                if company is not None and event.node in self._live:
                    company.served(event.node, answer.mates)
        elif isinstance(answer, Underway) and transfer is not None and company is not None and event.node in company:
            transfer.waits(time.monotonic(), event.node)
        elif isinstance(answer, Have) and answer.id == HAVE_ID and company is not None and event.node in company:
            company.has(time.monotonic(), event.node, bytes(event.data))
        elif isinstance(answer, Mates) and answer.id == MATES_ID and company is not None and event.node in self._live:
            try:
                mates = decode_mates(event.data)
            except ProtocolError as error:
                self._drop(event.node, f"broke the protocol: {error}")
                return
            holders = {*self._live, *(one.node for one in self._spare)}
            company.told(time.monotonic(), event.node, answer.version, mates, holders)
        else:
            self._drop(event.node, f"broke the protocol: answered {type(answer).__name__}")

    def _take_manifest(self, event: Arrived) -> None:
        try:
            if digest_of(event.data) != self._digest:
                raise ManifestError("the manifest failed its hash")
            manifest = Manifest.decode(event.data)
        except ManifestError as error:
            self._drop(event.node, str(error), lied=True)
            return
        now = time.monotonic()
        self._transfer = Transfer(manifest, window=self._window, stall_s=self._stall_s)
        for index in self._sink.start(manifest):
            self._transfer.already(index)
        for node in self._live:
            self._transfer.add(now, node)
        self._tell(self._transfer)
        if self._neighbours is not None and manifest.size >= MIN_SHARED_BYTES:
            try:
                here = self._neighbours.here()
            except EndpointError as error:
                log.warning("chunks of %s are not shared with this rack: %s", self._digest, error)
                return
            self._company = Company(now, self._digest, here, self._links, self._transfer)
            for node in self._live:
                self._company.introduce(node)

    def _take_chunk(self, transfer: Transfer, event: Arrived) -> None:
        now, chunk = time.monotonic(), event.answer.id
        manifest = transfer.manifest
        if chunk >= len(manifest.chunks):
            self._drop(event.node, f"broke the protocol: answered for chunk {chunk} of {len(manifest.chunks)}")
            return
        if not transfer.owes(event.node, chunk):  # else it could keep us hashing for ever
            self._drop(event.node, f"broke the protocol: sent chunk {chunk} without being asked")
            return
        sound = len(event.data) == manifest.size_of(chunk) and chunk_hash(event.data) == manifest.chunks[chunk]
        if transfer.arrived(now, event.node, chunk, sound):
            self._sink.write(manifest, transfer.places(chunk), event.data)
            self._tell(transfer)
        elif not sound:
            self._drop(event.node, f"chunk {chunk} failed its hash", lied=True)

    def _drop_stalled(self, now: float) -> None:
        if now >= self._count_at:
            self._count_at = now + _COUNT_EVERY_S
            for node in self._links.moving():
                if self._transfer is not None:
                    self._transfer.sends(now, node)
                elif node in self._live:
                    self._live[node] = now
        if self._transfer is None:
            for node, asked in list(self._live.items()):
                if now - asked >= self._stall_s:
                    self._drop(node, f"sent no manifest for {self._stall_s:g} s")
            return
        known = len(self._transfer.drops)
        self._transfer.tick(now)
        for drop in self._transfer.drops[known:]:
            self._drop(drop.node, drop.reason)

    def _drop(self, node: str, reason: str, *, lied: bool = False) -> None:
        mate = self._live.pop(node, None) is None
        self._links.drop(node)
        if self._transfer is not None:
            self._transfer.dropped(time.monotonic(), node, reason, lied=lied)
        if mate and self._company is not None:
            self._company.lost(time.monotonic(), node)
        else:
            self._strikes[node] += MAX_STRIKES if lied else 1
        self._dropped.append(Dropped(node, reason, lied))

    def _tell(self, transfer: Transfer) -> None:
        if self._progress is not None:
            self._progress(transfer.done_bytes, transfer.manifest.size)

    def _failed(self, what: str) -> FetchFailed:
        reasons = tuple((drop.node, drop.reason) for drop in self._dropped)
        told = "; ".join(f"{node}: {reason}" for node, reason in reasons) or "no holder was given"
        return FetchFailed(f"image {self._digest} {what} ({told})", reasons)
