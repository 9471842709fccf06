"""Nodes of a rack to test with: each fetches for itself, and serves what it has to the others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from fabric.images.cache import ImageCache
from fabric.images.errors import NotCached
from fabric.images.fetch import FetchReport, Neighbours, fetch
from fabric.images.hollow import Parts, Placed
from fabric.images.pieces import Pieces
from fabric.images.protocol import Holder
from fabric.images.server import ChunkServer
from tests.unit.images.content import Image


def nothing_cached(digest: str) -> Parts:
    raise NotCached(digest)


class Node:
    """With a cache, an image that it has fetched is unpacked; without, it is a file."""

    def __init__(self, name: str, rack: str, folder: Path, cache: ImageCache | None = None) -> None:
        folder.mkdir(exist_ok=True)
        self.name, self.rack, self.cache = name, rack, cache
        self._folder = folder
        self.pieces = Pieces(cache.parts if cache is not None else nothing_cached)
        self.open()

    def open(self) -> None:
        self.server = ChunkServer(self.pieces)
        self.here = Holder(self.name, self.rack, self.server.start())
        self.pieces.changed = self.server.changed

    def file(self, image: Image) -> Path:
        return self._folder / f"{self.name}-{image.digest[3:9]}"

    def fetch(self, image: Image, holders: Sequence[Holder], **options: object) -> FetchReport:
        """Whole, or an error."""
        neighbours = Neighbours(lambda: self.here, self.pieces)
        into = self.cache.incoming(image.digest, len(image.data)) if self.cache is not None else self.file(image)
        report = fetch(  # type: ignore[call-overload,unused-ignore]
            image.digest,
            holders,
            into,
            neighbours=neighbours,
            place=self.cache.limits if self.cache is not None else None,
            **options,  # type: ignore[arg-type]
        )
        placed = report.placed or Placed(into)
        assert b"".join(Parts(into, placed.folder, placed.parts).pieces()) == image.data
        self.pieces.moving(image.digest)
        if self.cache is not None:
            self.cache.admit(image.digest, into, report.placed)
            self.pieces.settled(image.digest)
        return report


class Rack:
    """Makes nodes and takes them down again."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder, self._stack = folder, stack
        self._pool = ThreadPoolExecutor(32)
        stack.callback(self._pool.shutdown)
        self.nodes: list[Node] = []

    def node(self, name: str, rack: str = "r1", cache_bytes: int = 0) -> Node:
        cache = None
        if cache_bytes:
            cache = ImageCache(self._folder / f"cache-{name}", cache_bytes)
            self._stack.callback(cache.close)
        made = Node(name, rack, self._folder / "files", cache)
        self._stack.callback(lambda: made.server.stop())
        self.nodes.append(made)
        return made

    def begin(self, call: Callable[[], FetchReport]) -> Future[FetchReport]:
        return self._pool.submit(call)


class Once:
    """A progress callback that acts once, when `done` bytes are there."""

    def __init__(self, done: int, act: Callable[[], object]) -> None:
        self._done, self._act = done, act
        self.acted = threading.Event()

    def __call__(self, done: int, total: int) -> None:
        if done >= self._done and not self.acted.is_set():
            self.acted.set()
            self._act()
