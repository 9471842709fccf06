"""Fetching images beside the loop: a thread for each image under way, and the talk between it and the role.

Theory of operation. The role asks for an image once (`want`); a thread then runs `obtain`, which blocks until the
image is here. When the thread has no holder left it calls `more`, which puts `HoldersWanted` on the loop and waits for
the role's answer (`MoreHolders`); a want without holders begins like that. Progress is told at most every 0.25 s. The
end is one `ImageReady` or `ImageFailed`.

At most `SLOTS` images are under way, others wait their turn. The threads are daemons, and a cancelled one ends within
a fraction of a second, so nothing here keeps a process from leaving.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from fabric.effects import FetchProgress, HoldersWanted, ImageFailed, ImageReady, Input
from fabric.images.errors import BadImage, EmptyImage, FetchCancelled, ImageError, ImageTooLarge, ManifestError
from fabric.images.fetch import FetchReport, More, Progress
from fabric.images.protocol import Holder
from fabric.messages import HolderRef

SLOTS = 4
MAX_WANTED = 256
PROGRESS_EVERY_S = 0.25
HOLDERS_WAIT_S = 3600.0
"""For the role's answer to `HoldersWanted`. Its search ends in seconds, unless ZooKeeper is away: then it goes on when
that is back, and the fetch with it."""
CLOSE_WAIT_S = 5.0
_LOOK_S = 0.1
_IMAGES_FAULT = (BadImage, EmptyImage, ImageTooLarge, ManifestError)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Obtained:
    """`size`: bytes of the image, or of what it takes here when it was here already; `report` is None then."""

    size: int
    report: FetchReport | None
    prepare_ms: int


@dataclass(frozen=True, slots=True)
class Talk:
    """What `obtain` is given besides the digest and the first holders."""

    more: More
    cancelled: threading.Event
    progress: Progress


Obtain = Callable[[str, Sequence[Holder], Talk], Obtained]


@dataclass(eq=False, slots=True)
class _Fetch:
    digest: str
    holders: list[Holder]
    cancelled: threading.Event = field(default_factory=threading.Event)
    answers: queue.SimpleQueue[list[Holder]] = field(default_factory=queue.SimpleQueue)
    told_at: float = 0.0
    searched_s: float = 0.0


class Fetches:
    """Made and used on the loop; `emit` is called on it, never from inside a method here. `obtain` runs in threads."""

    def __init__(self, obtain: Obtain, emit: Callable[[Input], None]) -> None:
        self._obtain = obtain
        self._emit = emit
        self._loop = asyncio.get_running_loop()
        self._wanted: dict[str, _Fetch] = {}
        self._running: dict[str, threading.Thread] = {}
        self._closed = False

    @property
    def under_way(self) -> int:
        return len(self._wanted)

    def is_under_way(self, digest: str) -> bool:
        return digest in self._wanted

    def want(self, digest: str, holders: Sequence[HolderRef]) -> None:
        known = self._wanted.get(digest)
        if known is not None:
            if holders:
                known.answers.put(_holders(holders))
        elif len(self._wanted) >= MAX_WANTED:
            self._loop.call_soon(
                self._emit, ImageFailed(digest, "node", f"{MAX_WANTED} images are being fetched here: try again later")
            )
        else:
            self._wanted[digest] = _Fetch(digest, _holders(holders))
            self._start_next()

    def more(self, digest: str, holders: Sequence[HolderRef]) -> None:
        """The answer to a HoldersWanted."""
        known = self._wanted.get(digest)
        if known is not None:
            known.answers.put(_holders(holders))

    async def close(self) -> None:
        """Cut off what is under way; nothing is emitted any more."""
        self._closed = True
        for fetch in self._wanted.values():
            fetch.cancelled.set()
        deadline = self._loop.time() + CLOSE_WAIT_S
        while self._running and self._loop.time() < deadline:
            await asyncio.sleep(_LOOK_S / 5)

    def _start_next(self) -> None:
        for digest, fetch in self._wanted.items():
            if len(self._running) >= SLOTS:
                return
            if digest not in self._running:
                thread = threading.Thread(target=self._run, args=(fetch,), name=f"fetch-{digest[3:11]}", daemon=True)
                self._running[digest] = thread
                thread.start()

    def _ended(self, fetch: _Fetch, end: Input | None) -> None:
        del self._running[fetch.digest]
        del self._wanted[fetch.digest]
        if not self._closed:
            self._start_next()
            if end is not None:
                self._emit(end)

    # --- on the fetch's thread ---------------------------------------------------------------------------------------

    def _run(self, fetch: _Fetch) -> None:
        end: Input | None
        try:
            talk = Talk(
                lambda excluded: self._ask(fetch, excluded),
                fetch.cancelled,
                lambda done, total: self._tell(fetch, done, total),
            )
            end = _ready(fetch, self._obtain(fetch.digest, fetch.holders, talk))
        except FetchCancelled:
            end = None
        except ImageError as error:
            end = ImageFailed(fetch.digest, "image" if isinstance(error, _IMAGES_FAULT) else "node", str(error))
        except Exception as error:
            log.exception("fetching image %s", fetch.digest)
            end = ImageFailed(fetch.digest, "node", f"{type(error).__name__}: {error}")
        self._on_loop(lambda: self._ended(fetch, end))

    def _ask(self, fetch: _Fetch, excluded: frozenset[str]) -> list[Holder]:
        began = time.monotonic()
        while True:  # an answer to an earlier question, which came too late
            try:
                fetch.answers.get_nowait()
            except queue.Empty:
                break
        self._on_loop(lambda: self._emit_open(HoldersWanted(fetch.digest, tuple(sorted(excluded)))))
        try:
            while not fetch.cancelled.is_set() and time.monotonic() - began < HOLDERS_WAIT_S:
                with suppress(queue.Empty):
                    return fetch.answers.get(timeout=_LOOK_S)
            return []
        finally:
            fetch.searched_s += time.monotonic() - began

    def _tell(self, fetch: _Fetch, done: int, total: int) -> None:
        now = time.monotonic()
        if done >= total or now - fetch.told_at >= PROGRESS_EVERY_S:
            fetch.told_at = now
            self._on_loop(lambda: self._emit_open(FetchProgress(fetch.digest, done, total)))

    def _on_loop(self, call: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop is closed: the agent has left
            self._loop.call_soon_threadsafe(call)

    def _emit_open(self, news: Input) -> None:
        if not self._closed:
            self._emit(news)


def _ready(fetch: _Fetch, got: Obtained) -> ImageReady:
    report = got.report
    if report is None:
        return ImageReady(fetch.digest, (), (), got.size, 0, got.prepare_ms, cached=True)
    return ImageReady(
        digest=fetch.digest,
        bytes_by_holder=tuple(sorted(report.bytes_by_holder.items())),
        dropped=tuple(f"{drop.node}: {drop.reason}" for drop in report.dropped),
        size=got.size,
        fetch_ms=max(0, int((report.seconds - fetch.searched_s) * 1000)),
        prepare_ms=got.prepare_ms,
        cached=False,
    )


def _holders(refs: Sequence[HolderRef]) -> list[Holder]:
    return [Holder(ref.node, ref.rack, ref.endpoint) for ref in refs]
