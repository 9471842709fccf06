"""Sending an image to its holders while it is being uploaded.

    push = Push(holders, name="web")        # candidates, the preferred ones first
    for data in upload: push.feed(data)                      # blocks while the holders can't follow
    result = push.finish()                                   # whole and durable at `redundancy` holders in different
    racks

or `push.abort()`. For one thread at a time; nothing runs in between, so what is fed should come more often than the
holders' `push_idle_s`.

Each chunk goes to `redundancy` targets at once, at most `WINDOW` unacknowledged a target: memory is bounded by that
window, and the targets share the buffers. The slowest target sets the pace, until it stalls.

What was streamed can't be sent again, so a target that is lost in the middle is replaced at the end: the image is
committed at those that are left, and a candidate that was not used yet copies it from them (`Replicate`). While no
candidate is left that could, the push fails at once instead of taking the rest of the upload in vain.

Nothing half remains. A target that is lost, and every target of a push that fails, is told to forget what it has, and
its link stays open until it says that it has done so: TCP resets a connection that is closed while answers are still
due, and what was on its way, the abort too, is lost then. So when a push has ended, all holders that answer have
forgotten it. One that does not within `ABORT_WAIT_S` forgets it when it finds nobody there to answer, at the latest
after its `push_idle_s` (`fabric.images.intake`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from uuid import uuid4

from fabric.images.errors import PushFailed
from fabric.images.links import Arrived, Links, Lost
from fabric.images.manifest import Buffer, Chunk, Chunker, ContentDigest
from fabric.images.protocol import (
    MAX_SOURCES,
    Abort,
    Answer,
    Begin,
    Commit,
    Done,
    Holder,
    Put,
    Refused,
    Replicate,
    Request,
    Underway,
)

WINDOW = 8
"""Chunks sent to one target and not yet acknowledged (bench/RESULTS.md)."""
REDUNDANCY = 2
STALL_S = 10.0
"""A target that owes an answer, and gave none and took nothing for so long, is lost."""
COUNT_EVERY_S = 1.0
"""How often it is looked who takes something, though it has not answered."""
ASK_AGAIN_S = 1.0
"""How often a holder that commits or replicates is asked whether it still does."""
SETTLE_S = 600.0
"""How long one commit or replication may take in all, however alive the holder is."""
ABORT_WAIT_S = 1.0
"""At its end a push waits so long, in all, for those who were told to forget it."""
_ABORT_ID = 0
"""Of every abort; other requests count from 1."""


@dataclass(frozen=True, slots=True)
class PushResult:
    """`digest`: of the image; `content_digest`: as found, if one was expected; `holders`: those that have it whole."""

    digest: str
    size: int
    chunks: int
    content_digest: str | None
    holders: tuple[Holder, ...]
    seconds: float


@dataclass(slots=True)
class _Target:
    holder: Holder
    owes: set[int] = field(default_factory=set)  # ids of unanswered requests
    heard: float = 0.0  # when it last answered, or was asked while it owed nothing
    settled: bool = False  # it said Done since this was last set to False


class Push:
    def __init__(
        self,
        holders: Sequence[Holder],
        *,
        name: str = "",
        expected_digest: str | None = None,
        redundancy: int = REDUNDANCY,
        stall_s: float = STALL_S,
    ) -> None:
        """Begins at `redundancy` of `holders`, in different racks. Raises `PushFailed`, `BadDigest`."""
        self._content = ContentDigest(expected_digest) if expected_digest is not None else None
        self._image = f"image {name}" if name else "image"
        self._redundancy, self._stall_s = redundancy, stall_s
        self._begun = time.monotonic()
        self._push_id = uuid4().hex
        self._next_id = 0
        self._chunker = Chunker()
        self._reasons: list[tuple[str, str]] = []
        self._spares = list(holders)
        self._targets: dict[str, _Target] = {}
        self._leaving: set[str] = set()  # nodes that were told to forget the push, and have not said that they did
        self._held: tuple[Holder, ...] = ()
        self._digest: str | None = None
        self._links = Links()
        self._count_at = 0.0
        self._open = True
        with self._cleanup():
            self._begin()

    # -- for the caller ------------------------------------------------------------------------------------------------

    def feed(self, data: Buffer) -> None:
        """Hands what `data` completes to the kernel; blocks while the targets can't follow. Raises `PushFailed`,
        `ImageTooLarge`."""
        with self._cleanup():
            if self._content is not None:
                self._content.update(data)
            for chunk in self._chunker.feed(data):
                self._put(chunk)
            while any(self._links.unsent(node) for node in self._targets):
                self._turn()  # half a chunk would stay half until the next call, and its target give up waiting

    def finish(self) -> PushResult:
        """Blocks until enough holders have the image whole and durable.

        Raises `EmptyImage`, `DigestMismatch`, or `PushFailed`, and then nothing half remains at any holder.
        """
        with self._cleanup():
            last, manifest = self._chunker.finish()
            encoded = manifest.encode()
            content_digest = self._content.check(manifest.digest) if self._content is not None else None
            if last is not None:
                self._put(last)
            while any(target.owes for target in self._targets.values()):
                self._turn()
            self._digest = manifest.digest
            self._settle(lambda request_id: Commit(id=request_id, push=self._push_id), encoded)
            self._held = tuple(target.holder for target in self._targets.values())
            self._replicate()
        self._close()
        return PushResult(
            manifest.digest,
            manifest.size,
            len(manifest.chunks),
            content_digest,
            self._held,
            time.monotonic() - self._begun,
        )

    def abort(self) -> None:
        """Gives up. Blocks until the targets have removed what they have, at most `ABORT_WAIT_S`; a repeat, or one
        after `finish`, does nothing."""
        if not self._open:
            return
        for node in self._targets:
            self._dismiss(node)
        self._close()

    def __enter__(self) -> Push:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.abort()

    # -- inside --------------------------------------------------------------------------------------------------------

    @contextmanager
    def _cleanup(self) -> Iterator[None]:
        if not self._open:
            raise RuntimeError("this push is finished or aborted")
        for target in self._targets.values():
            target.heard = time.monotonic()  # between calls nobody looked what it says
        try:
            yield
        except BaseException:
            self.abort()
            raise

    def _close(self) -> None:
        self._open = False
        until = time.monotonic() + ABORT_WAIT_S
        try:
            while self._leaving and (left_s := until - time.monotonic()) > 0:
                for event in self._links.poll(left_s):
                    self._part(event)
        finally:
            self._links.close()

    def _dismiss(self, node: str) -> None:
        """Tells a holder to forget this push."""
        if node in self._links.nodes():
            self._leaving.add(node)
            self._links.send(node, Abort(id=_ABORT_ID, push=self._push_id))

    def _part(self, event: Arrived | Lost) -> None:
        """From a holder that is no target (any more)."""
        if event.node in self._leaving and (isinstance(event, Lost) or event.answer.id == _ABORT_ID):
            self._leaving.discard(event.node)
            self._links.drop(event.node)

    def _begin(self) -> None:
        while True:
            while len(self._targets) < self._redundancy:
                target = self._next_target()
                self._ask(target, lambda request_id: Begin(id=request_id, push=self._push_id))
            if not any(target.owes for target in self._targets.values()):
                return
            self._turn()

    def _put(self, chunk: Chunk) -> None:
        while any(len(target.owes) >= WINDOW for target in self._targets.values()):
            self._turn()
        for target in self._targets.values():
            self._ask(target, lambda request_id: Put(id=request_id, push=self._push_id, hash=chunk.hash), chunk.data)

    def _settle(self, request: Callable[[int], Request], data: Buffer | None = None) -> None:
        """Asks all targets, again and again, until each has said Done or was lost."""
        ask_at = 0.0
        deadline = time.monotonic() + SETTLE_S
        for target in self._targets.values():
            target.settled = False
        while pending := [target for target in self._targets.values() if not target.settled]:
            now = time.monotonic()
            if now >= deadline:
                for target in pending:
                    self._lose(target.holder.node, f"was not done after {SETTLE_S:g} s")
                break
            if now >= ask_at:
                ask_at = now + ASK_AGAIN_S
                for target in pending:
                    self._ask(target, request, data)
            self._turn(ask_at)

    def _replicate(self) -> None:
        """Has unused candidates copy the image from those that hold it, until enough of them do."""
        while len(self._held) < self._redundancy:
            self._targets = {}
            target = self._next_target()
            digest, sources = str(self._digest), self._held[:MAX_SOURCES]
            self._settle(lambda request_id: Replicate(id=request_id, digest=digest, sources=sources))  # noqa: B023
            if target.settled:
                self._held = (*self._held, target.holder)

    def _next_target(self) -> _Target:
        """Opens a link to the first spare in a rack that has no copy yet."""
        racks = self._racks_used()
        spare = next((holder for holder in self._spares if holder.rack not in racks), None)
        if spare is None:
            raise self._failed()
        self._spares.remove(spare)
        self._leaving.discard(spare.node)
        self._links.open(spare)
        target = self._targets[spare.node] = _Target(spare)
        return target

    def _racks_used(self) -> set[str]:
        return {holder.rack for holder in (*self._held, *(target.holder for target in self._targets.values()))}

    def _ask(self, target: _Target, request: Callable[[int], Request], data: Buffer | None = None) -> None:
        if not target.owes:
            target.heard = time.monotonic()
        self._next_id += 1
        target.owes.add(self._next_id)
        self._links.send(target.holder.node, request(self._next_id), data)

    def _turn(self, until: float = math.inf) -> None:
        """Waits for answers, at most until `until` or the next stall, and takes them."""
        stalls = [target.heard + self._stall_s for target in self._targets.values() if target.owes]
        for event in self._links.poll(min([until, self._count_at, *stalls]) - time.monotonic()):
            target = self._targets.get(event.node)
            if target is None:
                self._part(event)
            elif isinstance(event, Lost):
                self._lose(event.node, event.reason)
            else:
                self._take(target, event.answer)
        now = time.monotonic()
        if now >= self._count_at:
            self._count_at = now + COUNT_EVERY_S
            for node in self._links.moving():
                if node in self._targets:
                    self._targets[node].heard = now
        for target in list(self._targets.values()):
            if target.owes and now - target.heard >= self._stall_s:
                self._lose(target.holder.node, f"gave no answer for {self._stall_s:g} s")

    def _take(self, target: _Target, answer: Answer) -> None:
        target.heard = time.monotonic()
        target.owes.discard(answer.id)
        if isinstance(answer, Done):
            target.settled = True
        elif isinstance(answer, Refused) and answer.code != "busy":
            self._lose(target.holder.node, f"refused ({answer.code}): {answer.reason}")
        elif not isinstance(answer, Underway | Refused):
            self._lose(target.holder.node, f"broke the protocol: answered {type(answer).__name__}")

    def _lose(self, node: str, reason: str) -> None:
        self._reasons.append((node, reason))
        del self._targets[node]
        self._dismiss(node)
        streamed = self._chunker.size > 0
        reachable = self._racks_used() | {holder.rack for holder in self._spares}
        if len(reachable) < self._redundancy or (streamed and not self._targets and not self._held):
            raise self._failed()

    def _failed(self) -> PushFailed:
        told = "; ".join(f"{node}: {reason}" for node, reason in self._reasons) or "too few were given"
        whole = self._held or tuple(target.holder for target in self._targets.values() if target.settled)
        return PushFailed(
            f"{self._image}: expected {self._redundancy} holders in different racks to take it, "
            f"found {len(self._held) or len(self._targets)} ({told})",
            tuple(self._reasons),
            self._digest,  # also while nobody has said Done: a commit that has begun is not stopped by an abort
            tuple(holder.node for holder in whole) if self._digest else (),
        )
